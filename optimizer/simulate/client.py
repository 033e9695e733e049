"""One device's life: ask, open, prefill, decode, recover; `edge.generation` in simulated time.

Between an answer's arrival and the next frame's nothing can interfere with a client whose link
is its own, so that stretch is computed at once: a token costs one event (its frame's arrival at
the server) and its share of a batch. Only the loss of a server reaches back into it; `lost`
says how.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from simpy import Environment
from simpy.events import Timeout

from hwprofiles.link_shape import uniform
from optimizer.cost.codec import ANSWER_BYTES, TOKEN_BYTES
from optimizer.plan import Plan
from optimizer.simulate.links import LinkLanes
from optimizer.simulate.ports import Answer, Controller
from optimizer.simulate.record import (
    CLOUD,
    DOWN,
    EDGE,
    ENCODE,
    OPEN,
    QUEUE,
    RECOVER,
    UP,
    Outcome,
    Record,
    RequestRow,
    Span,
)
from optimizer.simulate.scenario import Drafting, Scenario
from optimizer.simulate.server import Frame, Server, ServerSession
from optimizer.simulate.times import FrontTimes, LevelTimes
from optimizer.simulate.workload import ClientSpec, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What all clients of one simulation share."""

    env: Environment
    scenario: Scenario
    plan: Plan
    servers: Sequence[Server]
    levels: dict[str, LevelTimes]
    cloud_message_s: float
    record: Record
    controller: Controller | None
    drafting: Drafting | None
    keep_journal: bool
    seed: int


class _Sent(NamedTuple):
    """A frame in the journal."""

    position: int
    num_rows: int
    num_bytes: int
    decode_s: float


class Client:
    """See the module's docstring. Serves its requests one after another."""

    __slots__ = (
        "_accepted",
        "_asked_s",
        "_attempt",
        "_backoff_s",
        "_begun_s",
        "_control",
        "_deadline_s",
        "_draft_length",
        "_drafts",
        "_draws",
        "_encode_s",
        "_first_s",
        "_front",
        "_front_s",
        "_journal",
        "_lanes",
        "_last_s",
        "_level",
        "_lost_s",
        "_next_request",
        "_next_server",
        "_opening",
        "_position",
        "_prefill_edge_s",
        "_prefill_encode_s",
        "_recorded",
        "_request",
        "_round_trips",
        "_sent_bytes",
        "_session",
        "_spec",
        "_tokens",
        "_world",
    )

    def __init__(
        self,
        world: World,
        spec: ClientSpec,
        *,
        front: FrontTimes,
        lanes: LinkLanes,
        draft_length: int = 0,
        recorded: bool = False,
    ) -> None:
        self._world = world
        self._spec = spec
        self._front = front
        self._lanes = lanes
        self._draft_length = draft_length
        self._recorded = recorded
        self._next_request = 0
        self._next_server = spec.number % len(world.servers)
        self._draws = 0
        self._attempt = 0
        self._session: ServerSession | None = None
        self._request: Request | None = None
        self._last_s = 0.0
        self._plan_next(0.0)

    # --- requests -------------------------------------------------------------------------

    def _plan_next(self, free_s: float) -> None:
        """The next question, when it is asked and the device is free."""
        spec = self._spec
        if self._next_request >= len(spec.requests):
            return
        request = spec.requests[self._next_request]
        asked_s = free_s + request.at_s if spec.closed else request.at_s
        if asked_s >= self._world.scenario.duration_s:
            return
        self._next_request += 1
        self._at(max(asked_s, free_s), lambda _: self._begin(request, asked_s))

    def _begin(self, request: Request, asked_s: float) -> None:
        world = self._world
        self._request = request
        self._asked_s = asked_s
        self._tokens = self._round_trips = self._drafts = self._accepted = 0
        self._journal: list[_Sent] = []
        self._lost_s = -1.0
        self._level = world.levels[world.plan.level]
        self._control: Any = None if world.controller is None else world.controller.begin()
        patience = world.scenario.patience
        self._backoff_s = patience.first_backoff_s
        self._deadline_s = world.env.now + patience.connect_s
        self._open()

    def _end(self, at_s: float, outcome: Outcome) -> None:
        """The request is over at `at_s`, now or a little later."""
        request, record = self._request, self._world.record
        if request is None:
            return
        record.requests.append(
            RequestRow(
                client=self._spec.number,
                group=self._spec.group,
                server=self._next_server % len(self._world.servers),
                asked_s=self._asked_s,
                ttft_s=self._first_s - self._asked_s if self._tokens else math.nan,
                e2e_s=at_s - self._asked_s if outcome in ("done", "stopped") else math.nan,
                prompt_tokens=request.prompt_tokens,
                tokens=self._tokens,
                round_trips=self._round_trips,
                outcome=outcome,
            )
        )
        record.drafted += self._drafts
        record.accepted += self._accepted
        self._request = None
        self._recorded = self._recorded and not record.timeline
        session, self._session = self._session, None
        if session is not None:
            close_bytes = self._world.scenario.software.close_bytes
            record.up_bytes += close_bytes
            self._lanes.up.send(
                at_s,
                close_bytes,
                lambda t: self._at(t, lambda _: session.server.leave(session)),
            )
        self._plan_next(at_s)

    def abandon(self) -> None:
        """The simulation ends here; what is under way counts as unfinished."""
        self._session = None
        if self._request is not None:
            self._end(self._world.env.now, "unfinished")

    # --- opening --------------------------------------------------------------------------

    def _open(self) -> None:
        """Knock at the next server."""
        world, software = self._world, self._world.scenario.software
        self._attempt += 1
        attempt = self._attempt
        server = world.servers[self._next_server % len(world.servers)]
        request = self._request
        if request is None:
            return
        servers = world.scenario.servers
        blocks = -(-(request.prompt_tokens + request.output_tokens) // servers.block_tokens)
        world.record.up_bytes += software.open_bytes

        def answered(answer: Answer, session: ServerSession | None) -> None:
            if attempt != self._attempt:
                if session is not None:
                    server.leave(session)
                return
            world.record.down_bytes += software.opened_bytes
            was_alive = server.alive
            self._session = session
            self._lanes.down.send(
                world.env.now + world.cloud_message_s,
                software.opened_bytes,
                lambda t: self._at(t, lambda _: self._opened(attempt, answer, session, was_alive)),
            )

        self._lanes.up.send(
            world.env.now + self._front.message_s,
            software.open_bytes,
            lambda t: self._at(t, lambda _: server.open(self, blocks, answered)),
        )

    def _opened(
        self, attempt: int, answer: Answer, session: ServerSession | None, was_alive: bool
    ) -> None:
        if attempt != self._attempt or self._request is None:
            return
        if session is not None:
            if not session.closed:
                self._admitted(session)
            return  # lost in the meantime: `lost` has been told
        now_s, patience = self._world.env.now, self._world.scenario.patience
        if answer.kind == "never":
            self._end(now_s, "refused")
            return
        if was_alive:
            wait_s, outcome = answer.retry_after_s, "busy"
        else:
            wait_s, outcome = self._backoff_s * (0.5 + 0.5 * self._draw()), "server_lost"
            self._backoff_s = min(2 * self._backoff_s, patience.max_backoff_s)
        if now_s + wait_s >= self._deadline_s:
            lost = self._lost_s >= 0
            self._end(now_s, "server_lost" if lost or outcome == "server_lost" else "busy")
            return
        self._next_server += 1
        self._at(now_s + wait_s, lambda _: self._open())

    def _admitted(self, session: ServerSession) -> None:
        now_s = self._world.env.now
        self._begun_s = now_s
        if self._lost_s < 0:
            self._prefill(session, now_s)
        else:
            self._replay(session, now_s)

    # --- prefill and decode -----------------------------------------------------------------

    def _prefill(self, session: ServerSession, now_s: float) -> None:
        request, plan = self._require(), self._world.plan
        at_s, position = now_s, 0
        self._prefill_edge_s = self._prefill_encode_s = 0.0
        while position < request.prompt_tokens:
            rows = min(plan.prefill_chunk, request.prompt_tokens - position)
            last = position + rows == request.prompt_tokens
            at_s = self._compute_and_send(
                session, at_s, position, rows, num_logits=1 if last else 0, wanted=last
            )
            self._prefill_edge_s += self._front_s
            self._prefill_encode_s += self._encode_s
            position += rows
        self._position = position

    def _compute_and_send(
        self,
        session: ServerSession,
        at_s: float,
        position: int,
        rows: int,
        *,
        num_logits: int,
        wanted: bool,
        draft_s: float = 0.0,
    ) -> float:
        """Front, codec, wire; returns when the device is free again."""
        world, level = self._world, self._level
        num_bytes, self._encode_s, decode_s = level.frame(rows)
        self._front_s = draft_s + self._front.seconds(rows, position)
        sent_s = at_s + self._front_s + self._encode_s
        record = world.record
        record.up_bytes += num_bytes
        record.level_counts[level.name] = record.level_counts.get(level.name, 0) + 1
        self._sent_bytes = num_bytes
        if world.keep_journal:
            self._journal.append(_Sent(position, rows, num_bytes, decode_s))
        frame = Frame(
            session,
            num_rows=rows,
            num_logits=num_logits,
            position=position,
            decode_s=decode_s,
            sent_s=sent_s,
            wanted=wanted,
        )
        self._lanes.up.send(
            sent_s + self._front.message_s, num_bytes, lambda t: self._at(t, frame.arrive)
        )
        return sent_s

    def _step(self, session: ServerSession, now_s: float) -> None:
        """The next decode step, with drafts if there are any."""
        request, drafting = self._require(), self._world.drafting
        drafts, draft_s = 0, 0.0
        if drafting is not None and self._draw() < drafting.proposal_share:
            drafts = max(0, min(self._draft_length, request.output_tokens - self._tokens - 1))
            if self._control is not None and self._control.max_drafts is not None:
                drafts = min(drafts, self._control.max_drafts)
            draft_s = drafts * drafting.draft_s
        self._drafts += drafts
        self._compute_and_send(
            session,
            now_s,
            self._position,
            drafts + 1,
            num_logits=drafts + 1,
            wanted=True,
            draft_s=draft_s,
        )

    def answered(self, frame: Frame, at_s: float) -> None:
        """The server answers at `at_s`: the answer goes down."""
        world, drafts = self._world, frame.num_rows - 1 if self._tokens else 0
        accepted = self._take_drafts(drafts) if drafts else 0
        num_bytes = ANSWER_BYTES + TOKEN_BYTES * accepted
        world.record.down_bytes += num_bytes
        self._lanes.down.send(
            at_s + world.cloud_message_s,
            num_bytes,
            lambda t: self._token(frame, accepted, at_s, t),
        )

    def _token(self, frame: Frame, accepted: int, answered_s: float, now_s: float) -> None:
        """Tokens have come at `now_s`."""
        session = frame.session
        if self._session is not session or self._request is None:
            return
        world, request = self._world, self._request
        record = world.record
        first = self._tokens == 0
        queue_s = answered_s - frame.arrived_s - frame.cloud_s
        up_s, down_s = frame.arrived_s - frame.sent_s, now_s - answered_s
        if first:
            self._first_s = now_s
            parts = record.first_parts_s
            edge_s, encode_s = self._prefill_edge_s, self._prefill_encode_s
            parts[OPEN] += (
                frame.sent_s - edge_s - encode_s - self._asked_s
                if self._lost_s < 0
                else self._begun_s - self._asked_s
            )
            record.firsts += 1
        else:
            parts = record.step_parts_s
            edge_s, encode_s = self._front_s, self._encode_s
            record.steps += 1
            record.gaps_s.append(now_s - self._last_s)
            for _ in range(accepted):
                record.gaps_s.append(0.0)
        if self._lost_s >= 0:  # the outstanding frame was sent again: all until then is recovery
            parts[RECOVER] += max(0.0, frame.sent_s - (self._asked_s if first else self._last_s))
            edge_s = encode_s = 0.0
            self._lost_s = -1.0
        parts[EDGE] += edge_s
        parts[ENCODE] += encode_s
        parts[UP] += up_s
        parts[QUEUE] += queue_s
        parts[CLOUD] += frame.cloud_s
        parts[DOWN] += down_s
        if self._recorded:
            self._draw_spans(frame, answered_s, now_s, edge_s, encode_s)
        if now_s <= world.scenario.duration_s:
            record.tokens_in_time += 1 + accepted
        since_s = now_s - self._last_s
        self._last_s = now_s
        self._round_trips += 1
        self._tokens += 1 + accepted
        if not first:
            self._position += 1 + accepted
        if self._tokens >= request.output_tokens:
            self._end(now_s, "done")
            return
        if not first and self._controlled(frame, answered_s, now_s, since_s):
            self._end(now_s, "stopped")
            return
        self._step(session, now_s)

    def _controlled(self, frame: Frame, answered_s: float, now_s: float, since_s: float) -> bool:
        """Tell the controller what the step took and take its decisions; whether to stop."""
        controller = self._world.controller
        if controller is None:
            return False
        self._control = controller.after(
            self._control,
            step_s=since_s,
            wire_s=(now_s - frame.sent_s) - (answered_s - frame.arrived_s),
            uplink_bytes=self._sent_bytes,
        )
        self._level = self._world.levels[self._control.level]
        return bool(self._control.stop)

    def _take_drafts(self, drafts: int) -> int:
        """How many of the drafts the model agrees with, until the first that it does not."""
        drafting = self._world.drafting
        if not drafts or drafting is None:
            return 0
        accepted = 0
        while accepted < drafts and self._draw() < drafting.acceptance:
            accepted += 1
        self._accepted += accepted
        return accepted

    # --- losing a server --------------------------------------------------------------------

    def lost(self, session: ServerSession, at_s: float) -> None:
        """The server died at `at_s`. What it had sent still arrives; then we knock again."""
        if self._session is not session or self._request is None:
            return
        software = self._world.scenario.software
        attempt = self._attempt

        def noticed(t_s: float) -> None:
            self._at(max(t_s, self._last_s), lambda _: self._recover(session, attempt))

        self._lanes.down.send(max(at_s, self._last_s), software.close_bytes, noticed)

    def _recover(self, session: ServerSession, attempt: int) -> None:
        if self._session is not session or attempt != self._attempt or self._request is None:
            return
        patience, now_s = self._world.scenario.patience, self._world.env.now
        self._session = None
        if self._journal:
            self._lost_s = now_s
            self._world.record.reconnects += 1
        self._backoff_s = patience.first_backoff_s
        self._deadline_s = now_s + patience.recover_s
        self._open()

    def _replay(self, session: ServerSession, now_s: float) -> None:
        """Send every frame again; only the outstanding one is answered."""
        world = self._world
        last = len(self._journal) - 1
        for index, sent in enumerate(self._journal):
            frame = Frame(
                session,
                num_rows=sent.num_rows,
                num_logits=(1 if self._tokens == 0 else sent.num_rows) if index == last else 0,
                position=sent.position,
                decode_s=sent.decode_s,
                sent_s=now_s,
                wanted=index == last,
            )
            world.record.up_bytes += sent.num_bytes
            self._lanes.up.send(
                now_s + self._front.message_s,
                sent.num_bytes,
                lambda t, frame=frame: self._at(t, frame.arrive),  # type: ignore[misc]
            )

    # --- small parts ------------------------------------------------------------------------

    def _require(self) -> Request:
        if self._request is None:
            raise RuntimeError("no request is under way")
        return self._request

    def _draw(self) -> float:
        """The client's next random number of the run."""
        self._draws += 1
        return uniform(self._world.seed * 1_000_003 + self._spec.number, self._draws)

    def _at(self, at_s: float, call: Callable[[object], None]) -> None:
        """Call at `at_s`; at once if that is now. Never, if it is never."""
        env = self._world.env
        if at_s <= env.now:
            call(None)
        elif at_s < math.inf:
            timeout = Timeout(env, at_s - env.now)
            timeout.callbacks.append(call)

    def _draw_spans(
        self, frame: Frame, answered_s: float, now_s: float, edge_s: float, encode_s: float
    ) -> None:
        spans = self._world.record.timeline
        start_s = frame.sent_s - edge_s - encode_s
        spans.append(Span("edge", start_s, start_s + edge_s))
        spans.append(Span("encode", start_s + edge_s, frame.sent_s))
        spans.append(Span("up", frame.sent_s, frame.arrived_s))
        begun_s = answered_s - frame.cloud_s
        spans.append(Span("queue", frame.arrived_s, begun_s))
        spans.append(Span("cloud", begun_s, answered_s))
        spans.append(Span("down", answered_s, now_s))
        self._world.record.timeline_tokens_s.append(now_s)

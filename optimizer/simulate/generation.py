"""One answer from question to last token: prefill, decode, recover; `edge.generation.loop`
simulated.

Between an answer's arrival and the next frame's nothing can interfere with a client whose link is
its own, so that stretch is computed at once: a token costs one event (its frame's arrival at the
server) and its share of a batch. Only the loss of a server reaches back into it; `lost` says how.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from optimizer.simulate.connector import Connector
from optimizer.simulate.context import Device, SimulationContext
from optimizer.simulate.ports import ControlState
from optimizer.simulate.progress import OwnTime, Prefill, Sent
from optimizer.simulate.record import Outcome, RoundTimes
from optimizer.simulate.scenario import Drafting
from optimizer.simulate.server import Frame, ServerSession
from optimizer.simulate.workload import Request
from protos.sizes import ANSWER_BYTES, TOKEN_BYTES


class Generation:
    """See the module's docstring. `ended` is told once, with the time and the outcome; then
    `freed`, when the device can take the next question."""

    __slots__ = (
        "_begun_s",
        "_blocks",
        "_connector",
        "_control",
        "_device",
        "_ended",
        "_freed",
        "_journal",
        "_last_s",
        "_level",
        "_lost_s",
        "_own",
        "_prefill",
        "_recorded",
        "_sent_bytes",
        "_session",
        "_world",
        "asked_s",
        "first_s",
        "num_tokens",
        "over",
        "request",
        "round_trips",
    )

    def __init__(
        self,
        world: SimulationContext,
        device: Device,
        connector: Connector,
        request: Request,
        *,
        asked_s: float,
        ended: Ended,
        freed: Callable[[float], None],
        recorded: bool,
    ) -> None:
        self.request = request
        self.asked_s = asked_s
        self.first_s = math.nan
        self.num_tokens = 0
        self.round_trips = 0
        self.over = False
        self._world = world
        self._device = device
        self._connector = connector
        self._ended = ended
        self._freed = freed
        self._recorded = recorded
        total = request.prompt_tokens + request.output_tokens
        self._blocks = -(-total // world.scenario.servers.block_tokens)
        self._level = world.levels[world.plan.level]
        self._control: ControlState | None = None
        if world.controller is not None:
            self._control = world.controller.begin()
        self._session: ServerSession | None = None
        self._journal: list[Sent] = []
        self._lost_s = -1.0  # when the session was lost, until the first answer after it
        self._begun_s = asked_s  # when the device took the question up
        self._last_s = asked_s  # when the last token came
        self._own = OwnTime()
        self._prefill = Prefill()
        self._sent_bytes = 0

    def start(self) -> None:
        """Knock at a server."""
        self._begun_s = self._world.env.now
        self._connector.connect(self, self._blocks, self._world.scenario.patience.connect_s)

    def abandon(self) -> None:
        """The simulation is over."""
        self._end(self._world.env.now, "unfinished", closing=False)

    # --- the session ------------------------------------------------------------------------

    def opened(self, session: ServerSession) -> None:
        """See Opener."""
        self._session = session
        if session.closed:  # the server died while its answer was on the way
            self._recover(session)
        elif self._journal:
            self._replay(session)
        else:
            self._prefill_on(session)

    def shut_out(self, outcome: Outcome) -> None:
        """See Opener."""
        self._end(self._world.env.now, "server_lost" if self._lost_s >= 0 else outcome)

    def _end(self, at_s: float, outcome: Outcome, *, closing: bool = True) -> None:
        if self.over:
            return
        self.over = True
        self._connector.give_up()
        session, self._session = self._session, None
        self._ended(self, at_s, outcome)
        if session is not None and closing:
            self._close(session, at_s)
        else:
            self._freed(at_s)

    def _close(self, session: ServerSession, at_s: float) -> None:
        """Say goodbye; the device is free when the server has ended the stream, or soon anyway."""
        world, lanes, software = self._world, self._device.lanes, self._world.scenario.software
        latest_s = at_s + world.scenario.patience.close_s
        world.record.up_bytes += software.close_bytes
        world.record.down_bytes += software.closed_bytes

        def arrived(t: float) -> None:
            world.at(t, lambda _: session.server.leave(session))
            if t >= latest_s:
                self._freed(latest_s)
                return
            lanes.down.send(
                t + world.cloud_message_s,
                software.closed_bytes,
                lambda t: self._freed(min(t, latest_s)),
            )

        lanes.up.send(at_s + self._device.front.message_s, software.close_bytes, arrived)

    # --- prefill and decode -----------------------------------------------------------------

    def _prefill_on(self, session: ServerSession) -> None:
        """The next chunk of the prompt, and so on until all have been sent."""
        if self._session is not session or self.over:
            return
        world, prefill, prompt = self._world, self._prefill, self.request.prompt_tokens
        position = prefill.position
        rows = min(world.plan.prefill_chunk, prompt - position)
        if world.next_chunk is not None:
            rows = world.next_chunk(prompt - position, world.plan.prefill_chunk, prefill.answered)
        is_last = position + rows == prompt
        at_s = world.env.now
        if not position:  # its rows were computed while the session opened
            at_s = max(at_s - self._device.front.seconds(rows, 0), self._begun_s)
        sent_s = self._compute_and_send(
            session, at_s, position, rows, num_logits=int(is_last), wanted=is_last
        )
        prefill.position += rows
        prefill.front_s += self._own.front_s
        prefill.encode_s += self._own.encode_s
        if not is_last:
            world.at(sent_s, lambda _: self._prefill_on(session))

    def _step(self, session: ServerSession, now_s: float) -> None:
        """The next decode step, with drafts if there are any."""
        drafting = self._world.drafting
        drafts, draft_s = 0, 0.0
        if drafting is not None:
            drafts = self._proposed(drafting)
            left = self.request.output_tokens - self.num_tokens - 1
            drafts = max(0, min(drafts, left))
            if self._control is not None and self._control.max_drafts is not None:
                drafts = min(drafts, self._control.max_drafts)
            draft_s = drafts * drafting.draft_s
            self._world.record.drafted += drafts
        self._compute_and_send(
            session,
            now_s,
            self.request.prompt_tokens + self.num_tokens - 1,
            drafts + 1,
            num_logits=drafts + 1,
            wanted=True,
            draft_s=draft_s,
        )

    def _proposed(self, drafting: Drafting) -> int:
        """How many tokens the drafter has for the next step."""
        device = self._device
        if drafting.outcomes:
            drawn = drafting.outcomes[int(device.draw() * len(drafting.outcomes))]
            self._own.right = drawn.accepted
            return drawn.drafts
        return device.draft_length if device.draw() < drafting.proposal_share else 0

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
        world, level, own, device = self._world, self._level, self._own, self._device
        num_bytes, own.encode_s, decode_s = level.frame(rows, of_prompt=not self.num_tokens)
        own.front_s = draft_s
        if (
            wanted and self.num_tokens
        ):  # drafts go through the front one by one (edge.generation.draft_frames)
            for at in range(position, position + rows):
                own.front_s += device.front.seconds(1, at)
        else:
            own.front_s += device.front.seconds(rows, position)
        sent_s = at_s + own.front_s + own.encode_s
        record = world.record
        record.up_bytes += num_bytes
        record.level_counts[level.name] = record.level_counts.get(level.name, 0) + 1
        self._sent_bytes = num_bytes
        if world.keep_journal:
            self._journal.append(Sent(position, rows, num_bytes, decode_s))
        frame = Frame(
            session,
            num_rows=rows,
            num_logits=num_logits,
            position=position,
            decode_s=decode_s,
            sent_s=sent_s,
            edge_s=own.front_s + own.encode_s,
            wanted=wanted,
        )
        device.lanes.up.send(
            sent_s + device.front.message_s, num_bytes, lambda t: world.at(t, frame.arrive)
        )
        return sent_s

    def answered(self, frame: Frame, at_s: float) -> None:
        """The server answers at `at_s`: the answer goes down."""
        if frame.session is not self._session:
            return
        world, lanes = self._world, self._device.lanes
        if not frame.wanted:
            world.record.down_bytes += ANSWER_BYTES - TOKEN_BYTES
            lanes.down.send(
                at_s + world.cloud_message_s,
                ANSWER_BYTES - TOKEN_BYTES,
                lambda t: world.at(t, lambda _: self._prefill.acknowledged(frame)),
            )
            return
        accepted = self._accepted(frame.num_rows - 1) if self.num_tokens else 0
        num_bytes = ANSWER_BYTES + TOKEN_BYTES * accepted
        world.record.down_bytes += num_bytes
        lanes.down.send(
            at_s + world.cloud_message_s,
            num_bytes,
            lambda t: self._token(frame, accepted, at_s, t),
        )

    def _accepted(self, drafts: int) -> int:
        """How many of the drafts the model agrees with, until the first that it does not."""
        drafting = self._world.drafting
        accepted = 0
        if drafting is not None and drafting.outcomes:
            accepted = min(drafts, self._own.right)
        elif drafting is not None:
            while accepted < drafts and self._device.draw() < drafting.acceptance:
                accepted += 1
        self._world.record.accepted += accepted
        return accepted

    def _token(self, frame: Frame, accepted: int, answered_s: float, now_s: float) -> None:
        """Tokens have come at `now_s`, now or a little later."""
        session = frame.session
        if self._session is not session or self.over:
            return
        since_s = now_s - self._last_s
        if self._stalls(since_s):
            return
        self._count(frame, accepted, answered_s, now_s)
        first = self.num_tokens == 0
        if first:
            self.first_s = now_s
        self._last_s = now_s
        self.round_trips += 1
        self.num_tokens += 1 + accepted
        if self.num_tokens >= self.request.output_tokens:
            self._end(now_s, "done")
        elif not first and self._gives_up(frame, answered_s, now_s, since_s):
            self._end(now_s, "stopped")
        else:
            self._step(session, now_s)

    def _stalls(self, since_s: float) -> bool:
        """Whether the controller had stopped waiting before this answer came."""
        controller = self._world.controller
        if controller is None or not self.num_tokens or since_s <= controller.stall_s:
            return False
        self._end(max(self._last_s + controller.stall_s, self._world.env.now), "stopped")
        return True

    def _gives_up(self, frame: Frame, answered_s: float, now_s: float, since_s: float) -> bool:
        """Tell the controller what the step took and take its decisions; whether to stop."""
        controller = self._world.controller
        if controller is None or self._control is None:
            return False
        self._control = controller.after(
            self._control,
            step_s=since_s,
            wire_s=(now_s - frame.sent_s) - (answered_s - frame.arrived_s),
            uplink_bytes=self._sent_bytes,
        )
        self._level = self._world.levels[self._control.level]
        return self._control.stop

    # --- losing a server --------------------------------------------------------------------

    def lost(self, session: ServerSession, at_s: float) -> None:
        """The server died at `at_s`. What it had sent still arrives; then we knock again."""
        if self._session is not session or self.over:
            return
        self._device.lanes.down.send(
            max(at_s, self._last_s),
            self._world.scenario.software.close_bytes,
            lambda t: self._world.at(t, lambda _: self._recover(session)),
        )

    def _recover(self, session: ServerSession) -> None:
        if self._session is not session or self.over:
            return
        self._session = None
        if self._lost_s < 0:
            self._lost_s = self._world.env.now
        if self._journal:
            self._world.record.reconnects += 1
        self._connector.connect(self, self._blocks, self._world.scenario.patience.recover_s)

    def _replay(self, session: ServerSession) -> None:
        """Send every frame again; only the outstanding one brings tokens."""
        world, device, now_s = self._world, self._device, self._world.env.now
        whole = self._prefill.position == self.request.prompt_tokens
        for left, sent in zip(reversed(range(len(self._journal))), self._journal, strict=True):
            wanted = left == 0 and whole
            frame = Frame(
                session,
                num_rows=sent.num_rows,
                num_logits=(sent.num_rows if self.num_tokens else 1) if wanted else 0,
                position=sent.position,
                decode_s=sent.decode_s,
                sent_s=now_s,
                edge_s=0.0,
                wanted=wanted,
            )
            world.record.up_bytes += sent.num_bytes
            device.lanes.up.send(
                now_s + device.front.message_s,
                sent.num_bytes,
                lambda t, frame=frame: world.at(t, frame.arrive),  # type: ignore[misc]
            )
        if not whole:
            self._prefill_on(session)

    def _count(self, frame: Frame, accepted: int, answered_s: float, now_s: float) -> None:
        """Into the record."""
        world, first = self._world, self.num_tokens == 0
        own = self._prefill if first else self._own
        world.record.add(
            RoundTimes(
                self._last_s,
                own.front_s,
                own.encode_s,
                frame.sent_s,
                frame.arrived_s,
                answered_s,
                frame.cloud_s,
                now_s,
            ),
            is_first=first,
            accepted=accepted,
            is_recovered=self._lost_s >= 0,
            drawn=self._recorded,
        )
        self._lost_s = -1.0
        if now_s <= world.scenario.duration_s:
            world.record.tokens_in_time += 1 + accepted


Ended: TypeAlias = Callable[[Generation, float, Outcome], None]

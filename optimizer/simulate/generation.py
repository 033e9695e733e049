"""One answer from question to last token; `edge.generation.loop` in simulated time.

Between an answer's arrival and the next frame's arrival nothing can interfere with a client whose
link is its own, so that stretch is computed at once. A token costs one event (its frame's arrival
at the server) and its share of a batch. Only the loss of a server reaches back into that stretch;
`lost` says how.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, TypeAlias

from optimizer.policy.level_control import ControlState
from optimizer.policy.retry import Recovery
from optimizer.simulate.connector import SimulatedConnector
from optimizer.simulate.context import Device, SimulationContext
from optimizer.simulate.early_frames import EarlyFrames
from optimizer.simulate.frames import SimulatedFrameSender
from optimizer.simulate.moving import SplitParts, close_session
from optimizer.simulate.prefill import PrefillProgress
from optimizer.simulate.record import Outcome, RoundMoments
from optimizer.simulate.sessions import FrameInFlight, SimulatedSession
from optimizer.simulate.steps import VOID, StepSender, flight_moments
from optimizer.simulate.workload import Request
from protos.sizes import ANSWER_BYTES, TOKEN_BYTES

EMPTY_BYTES: Final = ANSWER_BYTES - TOKEN_BYTES


class Generation:
    """See the module's docstring.

    `ended` is called once, with the time and the outcome. `freed` is called when the device can
    take the next question. `recorded`: whether this answer becomes the record's timeline.
    """

    __slots__ = (
        "_begun_s",
        "_connector",
        "_context",
        "_control",
        "_device",
        "_early",
        "_ended",
        "_freed",
        "_last_s",
        "_parts",
        "_prefill",
        "_recorded",
        "_recovery",
        "_sender",
        "_session",
        "_steps",
        "asked_s",
        "first_s",
        "num_tokens",
        "over",
        "request",
        "round_trips",
    )

    def __init__(
        self,
        context: SimulationContext,
        device: Device,
        connector: SimulatedConnector,
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
        self._context = context
        self._device = device
        self._connector = connector
        self._ended = ended
        self._freed = freed
        self._recorded = recorded
        self._session: SimulatedSession | None = None
        self._early: EarlyFrames | None = None  # until the client knows that it has a session
        self._steps = StepSender(context, device, lambda one: one is self._session)
        self._parts = SplitParts(context, device, request, at_s=asked_s)
        self._begin_part()
        self._recovery = Recovery()  # begins anew with every token
        self._begun_s = asked_s  # when the device took the question up
        self._last_s = asked_s  # when the last token came

    @property
    def parts(self) -> SplitParts:
        """Where its tokens ran, and what of it went as ids."""
        return self._parts

    def _begin_part(self) -> None:
        """A part of the answer has frames and a controller of its own."""
        self._sender, self._prefill = self._parts.sender, self._parts.prefill
        controller = self._context.controller
        self._control: ControlState | None = None if controller is None else controller.begin()

    def start(self, older: SimulatedSession | None = None) -> None:
        """Ask for a session of the part that begins, which may go on from an older one."""
        self._begun_s = self._context.env.now
        patience = self._context.scenario.patience
        self._connector.connect(self, self._parts.blocks, patience.connect_s, older=older)

    def abandon(self) -> None:
        """The simulation is over."""
        self._end(self._context.env.now, "unfinished", closing=False)

    # --- the session ------------------------------------------------------------------------

    def asked(self, at_s: float, *, continues: bool) -> None:
        """See Opener. Frames leave with the first Open; a later one gets a replay."""
        self._early = None
        if continues:
            self._prefill.encode_kv(at_s)
            return
        self._prefill.forget_kv()
        if not self._sender.has_journal and not self._prefill.position:
            self._early = early = EarlyFrames(self, self._parts.blocks)
            self._prefill.free_s = self._begun_s
            self._prefill_on(early.session, behind_s=at_s)

    def admitted(self, session: SimulatedSession) -> None:
        """See Opener. Answers to what followed the Open may leave before the client knows."""
        if (early := self._early) is not None:
            self._session = session
            early.admitted(session)

    def opened(self, session: SimulatedSession) -> None:
        """See Opener."""
        self._session = session
        early, self._early = self._early, None
        if session.closed:  # the server died while its answer was on the way
            self._recover(session)
            return
        if not session.continues:
            self._prefill.forget_kv()
        whole = self._prefill.is_sent
        if early is None and self._sender.has_journal:
            self._sender.replay(session, want_last=whole, is_step=not self._parts.is_fresh)
        self._sender.forget()
        if whole:
            self._prefill.fill(self._context.env.now)
        else:
            self._prefill_on(session)

    def shut_out(self, outcome: Outcome) -> None:
        """See Opener."""
        is_lost = self._recovery.is_recovering or self.num_tokens > 0
        self._end(self._context.env.now, "server_lost" if is_lost else outcome)

    def _end(self, at_s: float, outcome: Outcome, *, closing: bool = True) -> None:
        if self.over:
            return
        self.over = True
        self._connector.give_up()
        session, self._session = self._session, None
        self._ended(self, at_s, outcome)
        if session is not None and closing:
            close_session(self._context, self._device, session, at_s, self._freed)
        else:
            self._freed(at_s)

    def _move(self, session: SimulatedSession, now_s: float) -> None:
        """The device's cache is full: go on at a lower split, from this session or without it."""
        self._session = None
        self._parts.move(self.request.prompt_tokens + self.num_tokens, now_s)
        self._begin_part()

        def go_on(t: float, older: SimulatedSession | None = None) -> None:
            self._context.at(t, lambda _: None if self.over else self.start(older))

        if self._prefill.has_kv:
            go_on(now_s, session)
        else:
            close_session(self._context, self._device, session, now_s, go_on)

    def lost(self, session: SimulatedSession, at_s: float) -> None:
        """The server died at `at_s`. What it had sent still arrives; then the client reconnects."""
        if self._session is not session or self.over:
            return
        self._device.lanes.down.send(
            max(at_s, self._last_s),
            self._context.scenario.software.close_bytes,
            lambda t: self._context.at(t, lambda _: self._recover(session)),
        )

    def _recover(self, session: SimulatedSession) -> None:
        if self._session is not session or self.over:
            return
        self._session = None
        now_s = self._context.env.now
        is_first = not self._recovery.is_recovering
        self._recovery = self._recovery.after_loss(now_s)
        left_s = self._recovery.left_s(self._context.scenario.patience.recover_s, now_s)
        if left_s <= 0:
            self._end(now_s, "server_lost")
            return
        if self._sender.has_journal:
            self._context.record.reconnects += 1
        self._connector.connect(self, self._parts.blocks, left_s, wait_first=not is_first)

    # --- prefill and decode -----------------------------------------------------------------

    def _prefill_on(self, session: SimulatedSession, behind_s: float | None = None) -> None:
        """Send the next chunk of the prompt, and so on until all have been sent.

        behind_s: when the Open leaves that they follow; None: the session is open.
        """
        early, context, prefill = self._early, self._context, self._prefill
        if self.over or session is not (self._session if early is None else early.session):
            return
        if early is not None and not early.takes_more():
            return
        at_s = prefill.free_s if early is not None else max(context.env.now, prefill.free_s)
        prefill.send_next(self._sender, session, at_s, behind_s)
        if not prefill.is_sent:
            context.at(prefill.free_s, lambda _: self._prefill_on(session, behind_s))

    def _step(self, session: SimulatedSession, now_s: float) -> None:
        """Send the next decode step, with drafts if there are any."""
        parts = self._parts
        position = self.request.prompt_tokens + self.num_tokens - 1
        if parts.by_ids:
            self._sender.send_ids(session, now_s, position=position, rows=1, is_last=True)
            return
        # Before its first step the device may still be computing what went as ids.
        wait_s = max(self._prefill.free_s - now_s, 0.0)
        most: int | None = None
        if self._context.drafting is not None and parts.drafts:
            most = max(parts.end - position - 2, 0)
            if self._control is not None and self._control.max_drafts is not None:
                most = min(most, self._control.max_drafts)
        self._steps.send(
            self._sender, session, now_s, position=position, most_drafts=most, wait_s=wait_s
        )

    def answered(self, frame: FrameInFlight, at_s: float) -> None:
        """The server answers at `at_s`: send the answer down."""
        if frame.session is not self._session:
            return
        at, told = self._context.at, self._prefill.acknowledged
        if not frame.wanted:
            self._send_down(at_s, EMPTY_BYTES, lambda t: at(t, lambda _: told(frame)))
            return
        accepted = 0 if self._parts.is_fresh else self._steps.accepted(frame)
        if accepted == VOID:
            self._send_down(at_s, EMPTY_BYTES, _unheard)
            return

        def come(t: float) -> None:
            self._token(frame, accepted, at_s, t)

        works = frame.tokens is not None  # the device, with the flight, while the answer travels
        heard = (lambda t: at(t, lambda _: come(t))) if works else come
        self._send_down(at_s, ANSWER_BYTES + TOKEN_BYTES * accepted, heard)

    def _send_down(self, at_s: float, num_bytes: int, heard: Callable[[float], None]) -> None:
        context = self._context
        context.record.down_bytes += num_bytes
        self._device.lanes.down.send(at_s + context.cloud_message_s, num_bytes, heard)

    def _token(self, frame: FrameInFlight, accepted: int, answered_s: float, now_s: float) -> None:
        """Tokens have come at `now_s`, now or a little later."""
        session = frame.session
        if self._session is not session or self.over:
            return
        since_s = now_s - self._last_s
        if self._stalls(since_s):
            return
        self._count(frame, accepted, answered_s, now_s)
        fresh, self._parts.is_fresh = self._parts.is_fresh, False
        if self.num_tokens == 0:
            self.first_s = now_s
        self._last_s = now_s
        self.round_trips += not frame.is_ahead
        self.num_tokens += 1 + accepted
        if self.num_tokens >= self.request.output_tokens:
            self._end(now_s, "done")
        elif self._parts.is_over(self.request.prompt_tokens + self.num_tokens):
            self._move(session, now_s)
        elif not fresh and self._gives_up(frame, answered_s, now_s, since_s):
            self._end(now_s, "stopped")
        elif fresh or self._steps.is_over(frame, now_s):
            self._step(session, now_s)

    def _stalls(self, since_s: float) -> bool:
        """Whether the controller had stopped waiting before this answer came."""
        controller = self._context.controller
        if controller is None or self._parts.is_fresh or since_s <= controller.stall_s:
            return False
        self._end(max(self._last_s + controller.stall_s, self._context.env.now), "stopped")
        return True

    def _gives_up(
        self, frame: FrameInFlight, answered_s: float, now_s: float, since_s: float
    ) -> bool:
        """Tell the controller what the step took and take its decisions; whether to stop."""
        controller = self._context.controller
        if controller is None or self._control is None:
            return False
        self._control = controller.after(
            self._control,
            step_s=since_s,
            wire_s=(now_s - frame.sent_s) - (answered_s - frame.arrived_s),
            uplink_bytes=self._sender.num_bytes,
        )
        self._sender.level = self._context.levels[self._control.level]
        return self._control.stop

    def _count(self, frame: FrameInFlight, accepted: int, answered_s: float, now_s: float) -> None:
        """Put the round trip into the record."""
        context, fresh = self._context, self._parts.is_fresh
        own: PrefillProgress | SimulatedFrameSender = self._prefill if fresh else self._sender
        since_s = self._last_s
        if frame.tokens is None:
            taken = (own.front_s, own.encode_s, frame.sent_s, frame.arrived_s)
            moments = RoundMoments(since_s, *taken, answered_s, frame.cloud_s, now_s)
        else:
            moments = flight_moments(
                frame, since_s=since_s, answered_s=answered_s, received_s=now_s
            )
        context.record.add(
            moments,
            is_first=self.num_tokens == 0,
            is_move=fresh and self.num_tokens > 0,
            is_ahead=frame.is_ahead,
            accepted=accepted,
            is_recovered=self._recovery.is_recovering,
            drawn=self._recorded,
        )
        self._recovery = Recovery()
        if now_s <= context.scenario.duration_s:
            context.record.tokens_in_time += 1 + accepted


def _unheard(at_s: float) -> None:
    """An empty answer, to a frame that was sent ahead on a wrong guess."""


Ended: TypeAlias = Callable[[Generation, float, Outcome], None]

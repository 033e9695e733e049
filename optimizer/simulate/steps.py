"""A decode step: with drafts, or as a flight of frames that leave ahead of the first one's answer.

A measured flight (`DraftingScenario.flights`) is a step's frame and those that followed it before
its answers were in, each with its rows and the tokens that it brought: none where the guess under
it was wrong. The device computes them one after another, and the server answers wrong ones without
running a layer. The next step begins with the answer to the last frame that brought tokens; what
the device has not begun by then is not sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from optimizer.simulate.context import Device, SimulationContext
from optimizer.simulate.drafts import SimulatedDrafts
from optimizer.simulate.frames import SimulatedFrameSender
from optimizer.simulate.record import RoundMoments
from optimizer.simulate.scenario import FlightFrame
from optimizer.simulate.sessions import FrameInFlight, SimulatedSession

VOID: Final = -1


class StepSender:
    """The decode steps of one answer. is_current: whether a session is still the answer's."""

    __slots__ = ("_context", "_device", "_drafts", "_is_current", "_left", "_position", "_useful")

    def __init__(
        self,
        context: SimulationContext,
        device: Device,
        is_current: Callable[[SimulatedSession], bool],
    ) -> None:
        self._context = context
        self._device = device
        self._drafts = SimulatedDrafts(context.drafting, device)
        self._is_current = is_current
        self._left: list[FlightFrame] = []  # of the flight under way, not sent yet, the next last
        self._useful = 0  # frames of it that will bring tokens and have not
        self._position = 0  # behind the tokens that the flight's frames so far will have brought

    def send(
        self,
        sender: SimulatedFrameSender,
        session: SimulatedSession,
        now_s: float,
        *,
        position: int,
        most_drafts: int | None,
        wait_s: float,
    ) -> None:
        """The next step. most_drafts: None, where steps carry none. wait_s: of other work first."""
        context, drafting = self._context, self._context.drafting
        self._useful = 0
        if drafting is not None and drafting.flights and most_drafts is not None:
            drawn = drafting.flights[int(self._device.draw() * len(drafting.flights))]
            self._left, self._position = list(reversed(drawn.frames)), position
            self._useful = sum(frame.tokens > 0 for frame in drawn.frames)
            self._send_next(sender, session, now_s, most_drafts + 1, wait_s)
            return
        num_drafts, draft_s = 0, 0.0
        if drafting is not None and most_drafts is not None:
            num_drafts = max(0, min(self._drafts.propose(), most_drafts))
            draft_s = num_drafts * drafting.draft_s
            context.record.drafted += num_drafts
        sender.send_step(
            session,
            now_s,
            position=position,
            rows=num_drafts + 1,
            draft_s=draft_s,
            wait_s=wait_s,
        )

    def _send_next(
        self,
        sender: SimulatedFrameSender,
        session: SimulatedSession,
        at_s: float,
        room: int,
        wait_s: float = 0.0,
    ) -> None:
        """The flight's next frame, and the others as the device becomes free. room: rows that the
        sequence may still have."""
        if not self._left or room < 1 or not self._is_current(session):
            self._useful -= sum(frame.tokens > 0 for frame in self._left)
            self._left = []
            return
        frame = self._left.pop()
        rows, tokens = min(frame.rows, room), min(frame.tokens, room)
        self._context.record.drafted += rows - 1
        flight = self._left
        free_s = sender.send_step(
            session,
            at_s,
            position=self._position,
            rows=rows,
            draft_s=0.0,
            wait_s=wait_s,
            tokens=tokens,
        )
        self._position += tokens

        def go_on(_: object) -> None:
            if self._left is flight:  # no other step has begun
                self._send_next(sender, session, free_s, room - tokens)

        self._context.at(free_s, go_on)

    def accepted(self, frame: FrameInFlight) -> int:
        """How many tokens a frame brings beyond one; VOID: none at all."""
        if frame.tokens is not None:
            return frame.tokens - 1 if frame.tokens else VOID
        return self._drafts.accept(frame.num_rows - 1)

    def is_over(self, frame: FrameInFlight) -> bool:
        """Whether the next step begins with the answer to this frame, which brought tokens."""
        if frame.tokens is None:
            return True
        self._useful -= 1
        return self._useful <= 0


def flight_moments(
    frame: FrameInFlight, *, since_s: float, answered_s: float, received_s: float
) -> RoundMoments:
    """A flight's round trip, as far as it lies behind the token before it."""
    sent_s, arrived_s = max(frame.sent_s, since_s), max(frame.arrived_s, since_s)
    answered_s = max(answered_s, since_s)
    return RoundMoments(
        since_s,
        min(frame.edge_s, sent_s - since_s),
        0.0,
        sent_s,
        arrived_s,
        answered_s,
        min(frame.cloud_s, answered_s - arrived_s),
        received_s,
    )

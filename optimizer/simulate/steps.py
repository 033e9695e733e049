"""A decode step: with drafts, or as a flight of frames that leave ahead of the first one's answer.

A flight is a step's frame and those that follow it before its answers are in (`flights.py`). The
device computes them one after another, and the server answers wrong ones without running a layer.
The next step begins with the answer to the last frame that brings tokens, behind the row that the
device is at; what it has not begun by then is not sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from optimizer.simulate.context import Device, SimulationContext
from optimizer.simulate.drafts import SimulatedDrafts
from optimizer.simulate.flights import DrawnFlight, RecordedFlight, StepFlight
from optimizer.simulate.frames import SimulatedFrameSender
from optimizer.simulate.record import RoundMoments
from optimizer.simulate.scenario import FlightFrame, MeasuredFlight
from optimizer.simulate.sessions import FrameInFlight, SimulatedSession

VOID: Final = -1
_PLAIN: Final = MeasuredFlight(frames=(FlightFrame(rows=1, tokens=1),))


class StepSender:
    """The decode steps of one answer. is_current: whether a session is still the answer's."""

    __slots__ = (
        "_context",
        "_device",
        "_drafts",
        "_flight",
        "_free_s",
        "_go_on",
        "_is_current",
        "_row_s",
    )

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
        self._flight: StepFlight | None = None  # under way
        self._free_s = 0.0  # when the device has made the flight's rows so far
        self._row_s = 0.0  # of each row of its last frame
        self._go_on: Callable[[float], None] = _nothing  # with the flight under way

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
        self._flight, self._go_on = None, _nothing
        if self._free_s > now_s:
            wait_s = max(wait_s, (self._free_s - now_s) % self._row_s)
        flight = None if most_drafts is None else self._begun()
        if flight is not None and most_drafts is not None:
            self._flight = flight
            self._send_next(flight, sender, session, now_s, position, most_drafts + 1, wait_s)
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

    def _begun(self) -> StepFlight | None:
        """The flight that the next step is; None: it is of one frame."""
        drafting, device = self._context.drafting, self._device
        if drafting is None:
            return None
        if drafting.flights:
            return RecordedFlight(drafting.flights[int(device.draw() * len(drafting.flights))])
        if device.ahead is None:
            return None
        if device.draw() >= drafting.proposal_share:  # the drafter finds nothing
            return RecordedFlight(_PLAIN)
        return DrawnFlight(device.ahead, drafting.chance_at, device.draw)

    def _send_next(
        self,
        flight: StepFlight,
        sender: SimulatedFrameSender,
        session: SimulatedSession,
        at_s: float,
        position: int,
        room: int,
        wait_s: float = 0.0,
    ) -> None:
        """The flight's next frame, and the others as the device becomes free. position: behind the
        tokens that its frames so far will have brought. room: rows that the sequence may still
        have."""
        if self._flight is not flight:  # another step has begun
            return
        if room < 1 or not self._is_current(session):
            flight.stop()
            return
        frame = flight.next_frame(room)
        if frame is None:
            self._go_on = lambda now_s: self._send_next(
                flight, sender, session, now_s, position, room
            )
            return
        self._go_on = _nothing
        rows, tokens = min(frame.rows, room), min(frame.tokens, room)
        record, first = self._context.record, int(not frame.is_ahead)
        record.drafted += rows - first
        record.accepted += max(tokens - first, 0)
        self._free_s = free_s = sender.send_step(
            session,
            at_s,
            position=position,
            rows=rows,
            draft_s=frame.draft_s,
            wait_s=wait_s,
            tokens=tokens,
            is_ahead=frame.is_ahead,
        )
        self._row_s = (free_s - at_s - wait_s) / rows
        self._context.at(
            free_s,
            lambda _: self._send_next(
                flight, sender, session, free_s, position + tokens, room - tokens
            ),
        )

    def accepted(self, frame: FrameInFlight) -> int:
        """How many tokens a frame brings beyond one; VOID: none at all."""
        if frame.tokens is not None:
            return frame.tokens - 1 if frame.tokens else VOID
        accepted = self._drafts.accept(frame.num_rows - 1)
        self._context.record.accepted += accepted
        return accepted

    def is_over(self, frame: FrameInFlight, now_s: float) -> bool:
        """Whether the next step begins with the answer to this frame, which brought tokens. Else
        the device, which has it at `now_s`, may go on with the flight."""
        if self._flight is None or frame.tokens is None or self._flight.answered():
            return True
        self._go_on(now_s)
        return False


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


def _nothing(now_s: float) -> None:
    """The device is busy, or there is no flight to go on with."""

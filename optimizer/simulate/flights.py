"""The frames of a flight: a step's own, and those that leave ahead of its answer.

Recorded ones (`DraftingScenario.flights`) are as they were measured. Drawn ones follow the edge's
own rule (`optimizer.policy.frames_ahead`): a further guess goes ahead while the chance that it and
all guesses before it without an answer are right is worth its row, and while the rows under way
would be made before the first answer. An answer that is right confirms the guesses before it, so
the flight goes on. Whether a guess is right is drawn when its row is made; the device learns it
with the answer. Alternatives are not simulated. Ours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from optimizer.policy.frames_ahead import MAX_IN_FLIGHT, least_chance, rows_in_time
from optimizer.simulate.scenario import MeasuredFlight


class NextFrame(NamedTuple):
    """One frame of a flight: its rows, the tokens that it will bring (0: the guess under it is
    wrong), whether all its rows are guesses, and seconds of guessing."""

    rows: int
    tokens: int
    is_ahead: bool
    draft_s: float = 0.0


class StepFlight(Protocol):
    """See the module's docstring."""

    def next_frame(self, room: int) -> NextFrame | None:
        """What the device, now free, makes and sends next; at most `room` of its rows are sent.
        None: nothing yet, or nothing any more."""
        ...

    def answered(self) -> bool:
        """A frame that brought tokens was answered. Whether it was the last of them."""
        ...

    def stop(self) -> None:
        """No further frame is sent."""
        ...


class RecordedFlight:
    """A StepFlight as it was measured."""

    __slots__ = ("_is_ahead", "_left", "_useful")

    def __init__(self, measured: MeasuredFlight) -> None:
        self._is_ahead = False  # the next frame
        self._left = deque(measured.frames)
        self._useful = sum(frame.tokens > 0 for frame in measured.frames)  # not answered

    def next_frame(self, room: int) -> NextFrame | None:
        """See StepFlight."""
        del room
        if not self._left:
            return None
        frame, is_ahead = self._left.popleft(), self._is_ahead
        self._is_ahead = True
        return NextFrame(frame.rows, frame.tokens, is_ahead)

    def answered(self) -> bool:
        """See StepFlight."""
        self._useful -= 1
        return self._useful <= 0

    def stop(self) -> None:
        """See StepFlight."""
        self._useful -= sum(frame.tokens > 0 for frame in self._left)
        self._left.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class AheadRule:
    """What the edge's rule goes by, for one device on one link. rtt_s, row_s: as in
    `optimizer.policy.frames_ahead`. guesses: of a frame behind its first row. draft_s: seconds for
    each guess."""

    rtt_s: float
    row_s: float
    guesses: int = 0
    draft_s: float = 0.0

    @property
    def least_chance(self) -> float:
        """Of a guess that goes ahead."""
        return float(least_chance(self.rtt_s, self.row_s))

    @property
    def most_rows(self) -> int:
        """Rows under way at once behind the first frame; 0: nothing goes ahead."""
        return int(rows_in_time(self.rtt_s, self.row_s))


class DrawnFlight:
    """A StepFlight by the edge's rule.

    chance_at: that a guess is right when those before it were, by how many guesses lie between it
    and the last token that is known, itself included. draw: random numbers in [0, 1).
    """

    __slots__ = ("_chance_at", "_draw", "_is_right", "_rule", "_stopped", "_under_way", "_useful")

    def __init__(
        self, rule: AheadRule, chance_at: Callable[[int], float], draw: Callable[[], float]
    ) -> None:
        self._rule = rule
        self._chance_at = chance_at
        self._draw = draw
        self._is_right = True  # all guesses so far
        self._stopped = False
        self._under_way: deque[int] = deque()  # guesses of each frame that no answer told of
        self._useful = 0  # frames of them that will bring tokens

    def next_frame(self, room: int) -> NextFrame | None:
        """See StepFlight."""
        rule, is_first = self._rule, not self._under_way
        if self._stopped or not (is_first or self._goes_ahead()):
            return None
        guesses = min(rule.guesses + (not is_first), room - is_first)
        depth = sum(self._under_way)
        num_right = 0
        for index in range(guesses):
            self._is_right = self._is_right and self._draw() < self._chance_at(depth + index + 1)
            num_right += self._is_right
        self._under_way.append(guesses)
        tokens = num_right + is_first
        self._useful += tokens > 0
        return NextFrame(guesses + is_first, tokens, not is_first, guesses * rule.draft_s)

    def _goes_ahead(self) -> bool:
        """Whether the next guess is worth a frame of its own, and may have one."""
        depth = sum(self._under_way)
        behind = depth - self._under_way[0]
        if len(self._under_way) >= MAX_IN_FLIGHT or behind >= self._rule.most_rows:
            return False
        chance = 1.0
        for at in range(1, depth + 2):
            chance *= self._chance_at(at)
        return chance >= self._rule.least_chance

    def answered(self) -> bool:
        """See StepFlight."""
        self._under_way.popleft()
        if self._under_way:  # its first guess is what this answer brought
            self._under_way[0] -= 1
        self._useful -= 1
        return self._useful <= 0

    def stop(self) -> None:
        """See StepFlight."""
        self._stopped = True

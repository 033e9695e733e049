"""The guesses of one frame under way, slot by slot, and the alternatives to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from edge.draft.base import Guess

# Behind a known token; behind the guesses of the frame before it; in place of a guess under way.
RunPlace = Literal["first", "next", "alternative"]


class DraftSlot(NamedTuple):
    """What was guessed for one position: the guess, and alternatives in order of their chance."""

    guess: Guess
    alternatives: tuple[Guess, ...] = ()


class Alternative(NamedTuple):
    """Another token for a position under way. chance: that it will be right, and of use."""

    position: int
    guess: Guess
    chance: float


@dataclass(slots=True, kw_only=True)
class DraftRun:
    """The guesses of one frame under way.

    first_position: of the frame's rows; the first row is no guess of this run. slots: those sent.
    reach: the chance that all of them are right, given that everything before the frame is right.
    base: the chance that everything before the frame is right, as far as that is not known yet.
    expected: tokens that the answer is expected to bring, if so. following: the slot after the last
    one; its guess was not sent with the frame. guess_s: the drafter's seconds for all of them.
    place: what the frame is among those under way.
    """

    first_position: int
    place: RunPlace = "first"
    base: float = 1.0
    slots: list[DraftSlot] = field(default_factory=list)
    reach: float = 1.0
    expected: float = 1.0
    following: DraftSlot | None = None
    guess_s: float = 0.0

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The guessed tokens that go with the frame."""
        return tuple(slot.guess.token_id for slot in self.slots)

    @property
    def next_guess(self) -> Guess | None:
        """The guess after the last one sent, if the drafter had one."""
        return None if self.following is None else self.following.guess

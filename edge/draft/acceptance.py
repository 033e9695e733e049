"""How often guesses come true: measured while they are made, starting from a prior.

There are two views of the same trials. By kind of guess: the chance of this very guess, by which a
round decides whether one more is worth it. By slot of the round: the chance that the i-th guess is
right when those before it were, from which the length that pays is computed. Either is a Beta
distribution whose prior weighs as much as `PRIOR_TRIALS` trials. Old trials fade, because text
changes (exponential forgetting: Raftery et al. 2010, doi 10.1198/TECH.2009.08104, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edge.draft.base import Guess

PRIOR_TRIALS: Final = 8.0
FADING: Final = 0.99  # a trial's weight shrinks by this with every later one of its kind


class HitRate:
    """One estimated probability: the mean of a Beta distribution."""

    __slots__ = ("_hits", "_trials")

    def __init__(self, prior: float) -> None:
        self._hits = prior * PRIOR_TRIALS
        self._trials = PRIOR_TRIALS

    @property
    def mean(self) -> float:
        """The estimated probability."""
        return self._hits / self._trials

    def add(self, hit: bool) -> None:
        """One more trial."""
        self._hits = self._hits * FADING + hit
        self._trials = self._trials * FADING + 1.0


class Acceptance:
    """The estimates of one generation, or of many in a row on one device."""

    def __init__(self) -> None:
        self._kinds: dict[str, HitRate] = {}
        self._slots: list[HitRate] = []

    def probability(self, guess: Guess) -> float:
        """The chance that this guess is right, given that everything before it is."""
        rate = self._kinds.get(guess.kind)
        return guess.prior if rate is None else rate.mean

    def by_slot(self, count: int, *, prior: float = 0.5) -> tuple[float, ...]:
        """The chance of the 1st, 2nd, ... guess of a round, if those before it were right.

        Slots never tried take the value of the last one that was, or `prior`.
        """
        known = [rate.mean for rate in self._slots[:count]]
        rest = known[-1] if known else prior
        return (*known, *(rest,) * (count - len(known)))

    def observe_alternative(self, guess: Guess, hit: bool) -> None:
        """Whether an alternative was right, where the guesses before it were wrong."""
        self._kinds.setdefault(guess.kind, HitRate(guess.prior)).add(hit)

    def observe(self, guesses: Sequence[Guess], num_accepted: int) -> None:
        """One answered round. Guesses after the first wrong one were not put to the test."""
        for slot, guess in enumerate(guesses[: num_accepted + 1]):
            hit = slot < num_accepted
            self._kinds.setdefault(guess.kind, HitRate(guess.prior)).add(hit)
            if slot == len(self._slots):
                self._slots.append(HitRate(guess.prior))
            self._slots[slot].add(hit)

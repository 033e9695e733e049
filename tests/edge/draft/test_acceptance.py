"""Measured acceptance: from the prior to the data, and only of guesses that were tested."""

from __future__ import annotations

import pytest

from edge.draft.acceptance import Acceptance
from edge.draft.base import Guess


def guesses(*kinds: str) -> list[Guess]:
    return [Guess(1, kind, 0.5) for kind in kinds]


def test_an_unknown_kind_has_its_prior() -> None:
    assert Acceptance().probability(Guess(1, "new", 0.3)) == 0.3


def test_many_trials_outweigh_the_prior() -> None:
    acceptance = Acceptance()
    for trial in range(2000):
        acceptance.observe(guesses("a"), int(trial % 10 != 0))
    assert acceptance.probability(Guess(1, "a", 0.1)) == pytest.approx(0.9, abs=0.02)


def test_guesses_behind_the_first_wrong_one_do_not_count() -> None:
    acceptance = Acceptance()
    acceptance.observe(guesses("a", "b", "c"), 1)
    assert acceptance.probability(Guess(1, "a", 0.5)) > 0.5
    assert acceptance.probability(Guess(1, "b", 0.5)) < 0.5
    assert acceptance.probability(Guess(1, "c", 0.5)) == 0.5


def test_slots_hold_conditional_chances() -> None:
    acceptance = Acceptance()
    for trial in range(1000):
        # The first guess is right half of the time, and then the second always is.
        acceptance.observe(guesses("a", "a"), 2 if trial % 2 else 0)
    first, second, third = acceptance.by_slot(3)
    assert first == pytest.approx(0.5, abs=0.03)
    assert second > 0.95
    assert third == second


def test_old_trials_fade() -> None:
    acceptance = Acceptance()
    for _ in range(500):
        acceptance.observe(guesses("a"), 1)
    for _ in range(300):
        acceptance.observe(guesses("a"), 0)
    assert acceptance.probability(Guess(1, "a", 0.5)) < 0.1

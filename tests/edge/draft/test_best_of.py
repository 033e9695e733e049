"""Several drafters at once: the likeliest guess leads, and agreement counts for more."""

from __future__ import annotations

import pytest

from edge.draft.acceptance import Acceptance
from edge.draft.base import Guess
from edge.draft.best_of import BestOf
from tests.edge.draft.saying import Saying


def test_the_best_guess_leads_and_every_token_is_named_once() -> None:
    look_up = Saying(Guess(7, "n", 0.4), Guess(8, "nb", 0.2))
    head = Saying(Guess(9, "h", 0.6), Guess(7, "hb", 0.3))
    found = BestOf([look_up, head], Acceptance()).guesses()
    assert [(guess.token_id, guess.kind) for guess in found] == [(9, "h"), (7, "n"), (8, "nb")]


def test_two_that_agree_are_surer_than_either() -> None:
    look_up = Saying(Guess(7, "n", 0.4), Guess(8, "nb", 0.2))
    (first, second) = BestOf([look_up, Saying(Guess(7, "h", 0.5))], Acceptance()).guesses()
    assert (first.token_id, first.kind, second.token_id) == (7, "h+n", 8)
    assert first.prior == pytest.approx(1 - 0.6 * 0.5)

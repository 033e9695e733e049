"""Guesses reach the drafter, and a server that sends them without end is no server."""

from __future__ import annotations

import pytest

from edge.draft.cloud import CloudGuesses
from edge.errors import PeerError
from edge.generation.drafting import DraftSelector
from edge.generation.heard_guesses import HeardGuesses
from protos.limits import MAX_DRAFT_SOURCES
from protos.messages import DraftChoice, Drafts

ONE = Drafts(first_position=1, choices=((DraftChoice(7, 0.5),),), source=1)


def test_guesses_reach_the_drafter_with_the_answer_and_behind_it() -> None:
    drafter = CloudGuesses()
    drafting = DraftSelector(drafter, clock=lambda: 0.0)
    heard = HeardGuesses(drafting)
    drafting.follow(0, [3], None)
    assert not drafting.has_news
    heard.answered([ONE])
    assert drafting.has_news
    assert [guess.token_id for guess in drafter.guesses()] == [7]
    heard.hear([Drafts(first_position=1, choices=((DraftChoice(8, 0.5),),), source=1)])
    assert [guess.token_id for guess in drafter.guesses()] == [8]


def test_guesses_without_an_answer_between_them_come_to_an_end() -> None:
    heard = HeardGuesses(None)
    for _ in range(3):
        for _ in range(MAX_DRAFT_SOURCES):
            heard.hear([ONE])
        heard.answered(())
    for _ in range(MAX_DRAFT_SOURCES):
        heard.hear([ONE])
    with pytest.raises(PeerError, match="guesses without an answer"):
        heard.hear([ONE])

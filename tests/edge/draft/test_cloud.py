"""What the cloud guesses, as a drafter: said as long as the sequence goes on as guessed."""

from __future__ import annotations

from edge.draft.acceptance import Acceptance
from edge.draft.base import HearsCloud
from edge.draft.best_of import BestOf
from edge.draft.cloud import CloudGuesses
from edge.draft.factory import asked_draft_ids
from edge.draft.ngram import NgramDrafter
from protos.messages import DraftChoice, Drafts


def drafts(first_position: int, *ids: tuple[int, ...], source: int = 1) -> Drafts:
    choices = tuple(
        tuple(DraftChoice(token_id, 0.6 if at == 0 else 0.2) for at, token_id in enumerate(one))
        for one in ids
    )
    return Drafts(first_position=first_position, choices=choices, source=source)


def said(drafter: CloudGuesses | BestOf) -> list[tuple[int, str]]:
    return [(guess.token_id, guess.kind) for guess in drafter.guesses()]


def test_guesses_go_on_with_the_sequence_and_end_where_it_differs() -> None:
    drafter = CloudGuesses()
    drafter.extend([5, 6, 7], None)
    assert drafter.guesses() == ()
    drafter.hear(drafts(3, (10, 20), (11, 21), (12, 22)))
    assert said(drafter) == [(10, "cloud1-0-6"), (20, "cloud1-0-5b")]
    drafter.extend([10], None)
    assert said(drafter)[0] == (11, "cloud1-1-6")
    drafter.extend([99], None)  # another token than the guess
    assert drafter.guesses() == ()
    drafter.rollback(4)
    assert said(drafter)[0] == (11, "cloud1-1-6")
    drafter.extend([11, 12], None)
    assert drafter.guesses() == ()  # past the last one


def test_what_was_guessed_before_the_sequence_began_there_is_no_guess() -> None:
    drafter = CloudGuesses()
    drafter.hear(drafts(3, (10,)))
    drafter.extend([5, 6], None)
    assert drafter.guesses() == ()
    drafter.extend([7], None)
    assert said(drafter) == [(10, "cloud1-0-6")]


def test_of_two_sources_the_surer_one_comes_first_and_each_token_once() -> None:
    drafter = CloudGuesses()
    drafter.extend([5], None)
    drafter.hear(drafts(1, (10, 20)))
    drafter.hear(Drafts(first_position=1, choices=((DraftChoice(20, 0.9),),), source=2))
    assert said(drafter) == [(20, "cloud2-0-9"), (10, "cloud1-0-6")]
    drafter.hear(drafts(1, (30,), source=2))  # a source's next word replaces its last one
    assert {token_id for token_id, _ in said(drafter)} == {10, 20, 30}


def test_an_alternative_counts_by_its_share_of_what_is_left() -> None:
    drafter = CloudGuesses()
    drafter.extend([5], None)
    choices = (DraftChoice(1, 0.5), DraftChoice(2, 0.45), DraftChoice(3, 0.05))
    drafter.hear(Drafts(first_position=1, choices=(choices,), source=1))
    # The guess stays first, however likely the alternative is where the guess is wrong.
    assert said(drafter) == [(1, "cloud1-0-5"), (2, "cloud1-0-9b"), (3, "cloud1-0-9c")]


def test_combined_drafters_tell_those_that_listen() -> None:
    both = BestOf([NgramDrafter(), CloudGuesses()], Acceptance())
    assert isinstance(both, HearsCloud)
    both.extend([5, 6], None)
    both.hear(drafts(2, (10,)))
    assert said(both) == [(10, "cloud1-0-6")]
    assert not isinstance(NgramDrafter(), HearsCloud)


def test_the_cloud_is_asked_only_where_its_guesses_are_wanted() -> None:
    assert asked_draft_ids("auto") == asked_draft_ids("cloud") > 0
    assert asked_draft_ids("off") == asked_draft_ids("ngram") == asked_draft_ids("model") == 0

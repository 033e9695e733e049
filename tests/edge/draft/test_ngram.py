"""The look-up drafter: longest match first, latest first, and an index that follows rollbacks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.draft.ngram import MAX_RUN, NgramDrafter


def scan(tokens: list[int], max_run: int) -> tuple[int, int] | None:
    """(token, run length) by looking at every position: what the index must agree with."""
    for length in range(min(max_run, len(tokens)), 0, -1):
        run = tokens[len(tokens) - length :]
        for end in range(len(tokens) - 1, length - 1, -1):
            if tokens[end - length : end] == run:
                return tokens[end], length
    return None


def guessed(drafter: NgramDrafter) -> tuple[int, int] | None:
    guesses = drafter.guesses()
    if not guesses:
        return None
    assert len({guess.token_id for guess in guesses}) == len(guesses)
    return guesses[0].token_id, int(guesses[0].kind.removeprefix("ngram-"))


def test_the_longest_match_wins_over_a_later_shorter_one() -> None:
    drafter = NgramDrafter()
    drafter.extend([1, 2, 3, 7, 9, 3, 8, 1, 2, 3])
    assert guessed(drafter) == (7, 3)


def test_of_equal_matches_the_latest_counts() -> None:
    drafter = NgramDrafter()
    drafter.extend([5, 6, 1, 5, 6, 2, 5, 6])
    assert guessed(drafter) == (2, 2)


def test_nothing_is_guessed_after_a_token_that_is_new() -> None:
    drafter = NgramDrafter()
    assert drafter.guesses() == ()
    drafter.extend([1, 2, 3])
    assert drafter.guesses() == ()


def test_a_longer_match_is_believed_more() -> None:
    drafter = NgramDrafter()
    drafter.extend([1, 2, 3, 9, 4, 3])
    (short,) = drafter.guesses()
    drafter.rollback(4)
    drafter.extend([1, 2, 3])
    (long,) = drafter.guesses()
    assert long.prior > short.prior


def test_the_alternative_is_another_token_after_an_earlier_or_shorter_match() -> None:
    drafter = NgramDrafter()
    drafter.extend([3, 4, 1, 2, 3, 9, 1, 2, 3])
    first, second = drafter.guesses()
    assert (first.token_id, second.token_id) == (9, 4)
    assert (first.kind, second.kind) == ("ngram-3", "ngram-1b")


def test_impossible_run_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="not possible"):
        NgramDrafter(min_run=3, max_run=2)
    with pytest.raises(ValueError, match="not possible"):
        NgramDrafter(min_run=0)


@given(st.lists(st.one_of(st.integers(0, 3), st.tuples(st.just("back"), st.integers(0, 6)))))
def test_the_index_answers_like_a_scan_after_any_extensions_and_rollbacks(
    events: list[int | tuple[str, int]],
) -> None:
    drafter = NgramDrafter()
    tokens: list[int] = []
    for event in events:
        if isinstance(event, tuple):
            keep = max(0, len(tokens) - event[1])
            del tokens[keep:]
            drafter.rollback(keep)
        else:
            tokens.append(event)
            drafter.extend([event])
        assert guessed(drafter) == scan(tokens, MAX_RUN)

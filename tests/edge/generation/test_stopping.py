"""A stop string never shows, wherever the tokens cut it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.generation.stopping import StopRule


def rule(*stops: str, max_new_tokens: int = 1000) -> StopRule:
    return StopRule(stop_token_ids={2}, stop_strings=stops, max_new_tokens=max_new_tokens)


def test_a_stop_token_ends_the_answer_and_shows_nothing_of_itself() -> None:
    stop = rule()
    assert stop.push(5, "Hello") == "Hello"
    assert stop.push(2, "") == ""
    assert stop.reason == "stop"


def test_the_length_ends_the_answer_with_everything_shown() -> None:
    stop = rule("END", max_new_tokens=2)
    assert stop.push(5, "a E") == "a "
    assert stop.push(5, "N") == "EN"
    assert stop.reason == "length"


def test_a_held_back_beginning_is_shown_once_it_cannot_become_a_stop_string() -> None:
    stop = rule("END")
    assert stop.push(5, "x E") == "x "
    assert stop.push(5, "at") == "Eat"
    assert stop.reason is None


@given(
    text=st.text(alphabet="ab", max_size=12),
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 12), max_size=6),
)
def test_any_cutting_shows_the_text_before_the_first_stop_string(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in pairwise(edges)]
    stop = rule(*stops)
    shown = ""
    seen = ""
    for piece in pieces:
        seen += piece
        shown += stop.push(5, piece)
        if stop.reason:
            break
    shown += stop.flush()
    # The stream stops at the piece that completes a stop string: look no further than that.
    first = min((at for s in stops if (at := seen.find(s)) >= 0), default=None)
    assert shown == (seen if first is None else seen[:first])
    assert stop.reason == (None if first is None else "stop")


@pytest.mark.parametrize("stops", [(), ("never",)])
def test_text_without_stop_strings_comes_through_whole(stops: tuple[str, ...]) -> None:
    stop = rule(*stops)
    assert "".join(stop.push(5, piece) for piece in ("nev", "en ", "so")) + stop.flush() == (
        "neven so"
    )

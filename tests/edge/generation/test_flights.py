"""Frames in flight over time: the product's loop over a given text, on a clock that work moves."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.draft.base import Guess
from tests.edge.draft.saying import Saying
from tests.edge.timed_cloud import RoundSetting, replayed

PROMPT = 8
SETTING = RoundSetting()


class Knowing(Saying):
    """Guesses the text's next token, but at every `wrong` th place another one."""

    def __init__(self, text: list[int], wrong: int) -> None:
        super().__init__()
        self._text = text
        self._wrong = wrong
        self._num = 0

    def extend(self, token_ids: object, rows: object = None) -> None:
        self._num += len(token_ids)  # type: ignore[arg-type]

    def rollback(self, num_tokens: int) -> None:
        self._num = num_tokens

    def guesses(self) -> tuple[Guess, ...]:
        if self._num >= len(self._text):
            return ()
        token_id = self._text[self._num]
        if self._wrong and self._num % self._wrong == 0:
            token_id += 1
        return (Guess(token_id, "knowing", 0.9),)


def text_of(count: int) -> list[int]:
    return [3 + i * i % 17 for i in range(PROMPT + count)]


def test_a_text_that_is_guessed_right_comes_at_the_rate_of_the_slowest_part() -> None:
    """Once the first answers have come, no round trip is waited for any more."""
    text = text_of(200)
    found = replayed(text, PROMPT, Knowing(text, 0), SETTING)
    assert found.token_ids == text[PROMPT:]
    late_s = found.times_s[-1] - found.times_s[50]
    assert late_s / 149 == pytest.approx(SETTING.edge_row_s, rel=0.1)
    assert found.round_trips <= 3


@pytest.mark.parametrize("wrong", [2, 3, 5, 11])
def test_wrong_guesses_cost_no_token_and_little_time(wrong: int) -> None:
    text = text_of(120)
    plain = replayed(text, PROMPT, None, SETTING)
    drafted = replayed(text, PROMPT, Knowing(text, wrong), SETTING)
    assert drafted.token_ids == plain.token_ids == text[PROMPT:]
    tokens_a_trip = 119 / drafted.round_trips
    assert tokens_a_trip > 0.8 * wrong
    assert plain.seconds / drafted.seconds > 0.6 * tokens_a_trip


class Guessing(Knowing):
    """Any guesses, the right one among them now and then, with any chances."""

    def __init__(self, text: list[int], seed: int) -> None:
        super().__init__(text, 0)
        self._random = random.Random(seed)
        self._sure = self._random.random()

    def guesses(self) -> tuple[Guess, ...]:
        at, drawn = self._num, self._random
        if at >= len(self._text) or drawn.random() < 0.1:
            return ()
        ids = [self._text[at], self._text[at] + 1, self._text[at] + 2]
        if drawn.random() > self._sure:
            drawn.shuffle(ids)
        count = drawn.randrange(1, 4)
        chances = sorted((drawn.uniform(0.05, 0.95) for _ in range(count)), reverse=True)
        return tuple(
            Guess(token_id, f"kind{at % 3}", chance)
            for token_id, chance in zip(ids, chances, strict=False)
        )


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    edge_ms=st.sampled_from([0.5, 2.0, 9.0]),
    cloud_ms=st.sampled_from([1.0, 4.0, 15.0]),
    rtt_ms=st.sampled_from([0.2, 10.0, 50.0, 200.0]),
    up=st.sampled_from([1e4, 2.5e6]),
)
def test_whatever_is_guessed_the_tokens_are_the_text(
    seed: int, edge_ms: float, cloud_ms: float, rtt_ms: float, up: float
) -> None:
    """The cloud here fails on a hole in its cache and on rows of other tokens than it says."""
    setting = RoundSetting(
        edge_row_s=edge_ms / 1e3, cloud_step_s=cloud_ms / 1e3, rtt_s=rtt_ms / 1e3, up_bytes_per_s=up
    )
    text = text_of(60)
    assert replayed(text, PROMPT, Guessing(text, seed), setting).token_ids == text[PROMPT:]

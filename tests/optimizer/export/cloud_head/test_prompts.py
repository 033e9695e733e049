"""Questions of many kinds, two of which are never trained on."""

from __future__ import annotations

from itertools import islice

import pytest

from optimizer.errors import BuildError
from optimizer.export.cloud_head.corpus import (
    HELD_OUT_ROWS,
    LENGTH_STEP,
    ROWS_PER_SHARD,
    question_groups,
)
from optimizer.export.cloud_head.prompts import HELD_OUT, OWN_KIND, TOPICS, TRAINED, prompts


def test_all_kinds_come_and_held_out_ones_are_marked() -> None:
    found = list(islice(prompts(3), 2000))
    assert {one.kind for one in found} == {*TRAINED, *HELD_OUT}
    assert all(one.is_held_out == (one.kind in HELD_OUT) for one in found)
    assert found == list(islice(prompts(3), 2000))
    assert not any("{" in one.text for one in found)


def test_every_second_prompt_is_the_users_and_all_come_before_one_comes_again() -> None:
    own = [f"question {number}" for number in range(50)]
    found = list(islice(prompts(3, own), 200))
    theirs = [one for one in found if one.kind == OWN_KIND]
    assert [one.kind == OWN_KIND for one in found] == [False, True] * 100
    assert not any(one.is_held_out for one in theirs)
    assert sorted(one.text for one in theirs[:50]) == sorted(own)
    assert sorted(one.text for one in theirs[50:]) == sorted(own)
    assert [one.text for one in theirs[:50]] != own


def test_no_form_is_left_unfilled_and_no_topic_comes_twice() -> None:
    assert len(set(TOPICS)) == len(TOPICS)
    for form in (form for forms in (TRAINED | HELD_OUT).values() for form in forms):
        assert "tea" in form.format("tea", 3, 4, 5)


class Letters:
    """A tokenizer of letters."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [ord(letter) % 256 for letter in text][:40]


def test_questions_of_a_group_are_of_one_length_and_of_one_side() -> None:
    groups = list(islice(question_groups(Letters(), seed=0), 12))
    assert any(is_held_out for _, is_held_out in groups)
    for questions, is_held_out in groups:
        assert questions.ndim == 2
        assert 8 <= len(questions) <= (HELD_OUT_ROWS if is_held_out else ROWS_PER_SHARD)


def test_kinds_that_are_held_out_come_early() -> None:
    """A corpus of few shards already has some, although these kinds are a small part."""
    sides = [is_held_out for _, is_held_out in islice(question_groups(Letters(), seed=0), 12)]
    assert 2 <= sum(sides) <= 6


class Words(Letters):
    """A tokenizer with a token for each word."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [len(word) for word in text.split()]


def test_long_questions_are_cut_to_few_lengths_where_there_is_room() -> None:
    own = [f"{'so ' * length}{number}" for number, length in enumerate(range(131, 900, 2))]
    found = list(islice(question_groups(Words(), seed=0, own=own, longest=400), 60))
    lengths = {questions.shape[1] for questions, _ in found}
    assert max(lengths) == 384
    assert {length for length in lengths if length > 128} <= {*range(0, 400, LENGTH_STEP)}
    kept = list(islice(question_groups(Words(), seed=0, own=own), 60))
    assert all(questions.shape[1] <= 128 for questions, _ in kept)


def test_a_tokenizer_that_makes_everything_long_is_refused() -> None:
    class Bits(Letters):
        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return [1] * 1000

    with pytest.raises(BuildError, match="no question short enough"):
        next(question_groups(Bits(), seed=0))

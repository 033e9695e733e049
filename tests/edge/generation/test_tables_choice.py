"""The choice among codec tables: the fewest bytes, made once, dropped where a server refuses."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from edge.errors import RefusedError
from edge.generation.tables_choice import ChosenTables, HeldRows, TablesChoice, TablesChooser
from edge.generation.token_source import FrontSegment, NewToken, OnStep
from protos.limits import TABLES_REFUSED
from tests.edge.fakes import FakeFront

PROMPT = [5, 6, 7, 8, 9, 10]


@dataclass
class Sized:
    """A ladder whose frames have so many bytes a row."""

    size: int
    encoded: int = 0

    def encode(self, level: str, rows: Any, token_ids: Any) -> bytes:
        self.encoded += 1
        assert len(rows) == len(token_ids)
        return b"x" * (self.size * len(rows))


def chooser(**sizes: int) -> tuple[TablesChooser, dict[str, Sized]]:
    ladders: Any = {name: Sized(size) for name, size in sizes.items()}
    by_split = {name: {1: ladder} for name, ladder in ladders.items()}
    return TablesChooser(by_split, num_rows=4), ladders


def choice(made: TablesChooser, front: FakeFront, **levels: str) -> TablesChoice:
    return made.choose(front, PROMPT, split=1, levels=levels)[0]


@pytest.mark.parametrize(
    ("sizes", "name"),
    [
        ({"default": 3, "code": 2, "talk": 4}, "code"),
        ({"default": 2, "code": 2}, "default"),
        ({"default": 3, "code": 2, "talk": 2}, "code"),
    ],
)
def test_the_fewest_bytes_win_and_the_first_of_equals(sizes: dict[str, int], name: str) -> None:
    made, _ = chooser(**sizes)
    found = choice(made, FakeFront(), **dict.fromkeys(sizes, "q3"))
    assert found.name == name
    assert found.num_bytes == {key: 4 * size for key, size in sizes.items()}  # of four rows


def test_what_cannot_differ_is_not_computed() -> None:
    made, ladders = chooser(default=3, code=2)
    front = FakeFront()
    assert choice(made, front, default="lossless", code="lossless").name == "default"
    assert choice(made, front, code="q3") == TablesChoice(name="code")
    assert not front.cache
    assert not any(ladder.encoded for ladder in ladders.values())


def test_a_choice_is_remembered_and_leaves_the_fronts_cache_alone() -> None:
    made, ladders = chooser(default=3, code=2)
    front = FakeFront()
    first = choice(made, front, default="q3", code="q3")
    front.rollback(0)
    front.forward(np.array(PROMPT))
    assert choice(made, front, default="q3", code="q3") == first
    assert ladders["code"].encoded == 1
    assert front.token_ids == PROMPT
    choice(made, front, default="q2", code="q2")  # another level: other frames
    assert ladders["code"].encoded == 2


def test_rows_that_are_there_are_given_once_and_only_for_their_tokens() -> None:
    front = FakeFront()
    ids = np.array(PROMPT[:4])
    rows = front.forward(ids)
    held = HeldRows(front, ids, rows)
    assert held.num_tokens == 0
    held.keep_steps([])
    held.rollback(0)
    assert held.forward(ids) is rows
    assert (held.num_tokens, front.steps) == (4, [4])
    held.forward(np.array(PROMPT[4:]))
    assert front.token_ids == PROMPT

    other = HeldRows(front, ids, rows)
    expected = FakeFront().forward(np.array(PROMPT[:2]))
    np.testing.assert_array_equal(other.forward(np.array(PROMPT[:2])), expected)
    assert front.token_ids == PROMPT[:2]


def test_steps_that_are_kept_are_the_fronts_own() -> None:
    front = FakeFront()
    ids = np.array(PROMPT[:4])
    held = HeldRows(front, ids, front.forward(ids))
    held.keep_steps([PROMPT[:4], PROMPT[4:]])
    assert held.num_tokens == 4


class Answer:
    """A source that brings these tokens, or an error."""

    reconnects = 0

    def __init__(self, tokens: Sequence[int], error: Exception | None = None) -> None:
        self._tokens, self._error = tokens, error

    def tokens(self, prompt_ids: Sequence[int], on_step: OnStep) -> Generator[NewToken, None, None]:
        yield from (NewToken(token, 0.0, 0.0) for token in self._tokens)
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        pass


def chosen(code: Answer, *, default: str | None = "default") -> tuple[ChosenTables, TablesChooser]:
    made, _ = chooser(default=3, code=2)
    front = FakeFront()
    levels = {"default": "q3", "code": "q3"}

    def part_of(name: str, computed: FrontSegment) -> Any:
        return code if name == "code" else Answer([1, 2])

    return (
        ChosenTables(
            choose=lambda ids: made.choose(front, ids, split=1, levels=levels),
            part_of=part_of,
            chooser=made,
            default=default,
        ),
        made,
    )


def ids_of(source: ChosenTables) -> list[int]:
    return [token.token_id for token in source.tokens(PROMPT, lambda step: None)]


def test_a_server_that_refuses_the_tables_gets_the_default_ones() -> None:
    refusal = RefusedError(f"cloud:1: {TABLES_REFUSED} ab, which this server does not hold")
    source, made = chosen(Answer([], refusal))
    assert ids_of(source) == [1, 2]
    assert source.tables == "default"
    assert choice(made, FakeFront(), default="q3", code="q3") == TablesChoice(name="default")


@pytest.mark.parametrize(
    ("answer", "default"),
    [
        (Answer([], RefusedError("the edge holds another model")), "default"),
        (Answer([3], RefusedError(f"{TABLES_REFUSED} ab")), "default"),
        (Answer([], RefusedError(f"{TABLES_REFUSED} ab")), None),
    ],
)
def test_other_refusals_and_later_ones_stay(answer: Answer, default: str | None) -> None:
    source, _ = chosen(answer, default=default)
    with pytest.raises(RefusedError):
        ids_of(source)
    assert source.tables == "code"

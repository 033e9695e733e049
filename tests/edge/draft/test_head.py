"""The head as a drafter: the last row counts, and facts that cannot be read are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.draft.base import Guess
from edge.draft.head import FACTS_NAME, HeadDrafter, HeadFacts, HeadModel
from edge.errors import FrontError

ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)


class EchoHead:
    """Guesses the row's first number."""

    def guesses(self, row: Any) -> tuple[Guess, ...]:
        return (Guess(int(row[0]), "head-9", 0.95),)


def drafter() -> HeadDrafter:
    head: Any = EchoHead()
    return HeadDrafter(head)


def test_the_guess_follows_the_last_row() -> None:
    made = drafter()
    assert made.guesses() == ()
    made.extend([1, 2, 3], ROWS)
    assert [guess.token_id for guess in made.guesses()] == [4]
    made.extend([], None)
    assert [guess.token_id for guess in made.guesses()] == [4]


def test_there_is_no_guess_where_the_last_row_is_not_known() -> None:
    made = drafter()
    made.extend([1, 2, 3], ROWS)
    made.rollback(2)
    assert made.guesses() == ()
    made.extend([1, 2, 3], ROWS)
    made.extend([4], None)
    assert made.guesses() == ()


@pytest.mark.parametrize("facts", [None, "{oops", "{}", '{"split": 2, "sure": [[1]]}'])
def test_facts_that_cannot_be_read_are_named(tmp_path: Path, facts: str | None) -> None:
    if facts is not None:
        (tmp_path / FACTS_NAME).write_text(facts)
    with pytest.raises(FrontError, match="not readable facts of a draft head"):
        HeadFacts.load(tmp_path)


def test_facts_are_the_split_and_a_row_for_each_tenth(tmp_path: Path) -> None:
    (tmp_path / FACTS_NAME).write_text('{"split": 2, "sure": [[0.9, 0.1, 0.97]]}')
    assert HeadFacts.load(tmp_path) == HeadFacts(split=2, sure=((0.9, 0.1, 0.97),))


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "head.onnx").write_bytes(b"nonsense")
    with pytest.raises(FrontError, match="cannot be loaded"):
        HeadModel(tmp_path)

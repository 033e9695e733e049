"""Tokens leave the front's cache, and the others keep their positions: as a mask would have it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.device.front import FrontEngine
from edge.errors import InputError
from optimizer.export.sources.model_source import ModelSource, open_source
from optimizer.policy.kv.recent import Recent
from tests.kept_reference import KeptReference
from tests.optimizer.export.plans import make_front, make_plan, worst_row_error
from tests.tiny_models import VOCAB, make_tiny_model

CAPACITY = 16
POSITIONS = 128
TOKENS = [int(one) for one in np.random.default_rng(7).integers(3, VOCAB, size=60)]
ERRORS = {32: 1e-5, 16: 1e-2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ModelSource]:
    folder = tmp_path_factory.mktemp("model")
    return make_tiny_model("llama", folder), open_source(folder)


def a_front(source: ModelSource, folder: Path, kv_bits: int = 32) -> FrontEngine:
    plan = make_plan(source, 2, max_tokens=CAPACITY, kv_bits=kv_bits)
    return make_front(source, replace(plan, max_positions=POSITIONS), folder)


@pytest.fixture(scope="module")
def front(model: tuple[Any, ModelSource], tmp_path_factory: pytest.TempPathFactory) -> FrontEngine:
    return a_front(model[1], tmp_path_factory.mktemp("edge"))


def rows_of(front: FrontEngine, policy: Recent, chunk: int) -> np.ndarray[Any, Any]:
    front.reset()
    parts, at = [], 0
    while at < len(TOKENS):
        if front.num_tokens == CAPACITY:
            front.keep_slots(list(policy.kept(CAPACITY, CAPACITY)))
        count = min(chunk, CAPACITY - front.num_tokens, len(TOKENS) - at)
        parts.append(front.forward(np.array(TOKENS[at : at + count])))
        at += count
    return np.concatenate(parts)


@pytest.mark.parametrize("kv_bits", [32, 16, 8])
@pytest.mark.parametrize("chunk", [1, 5])
def test_the_rows_equal_those_of_a_masked_model(
    model: tuple[Any, ModelSource], tmp_path: Path, kv_bits: int, chunk: int
) -> None:
    reference = KeptReference(model[0], Recent(), CAPACITY)
    reference.extend(TOKENS)
    expected = reference.run().hidden_states[2][0].numpy()
    front = a_front(model[1], tmp_path, kv_bits)
    assert reference.rounds > 5
    rows = rows_of(front, Recent(), chunk)
    if kv_bits == 8:  # this model's worst row is 0.4 off without any token leaving, the median 0.05
        errors = [worst_row_error(rows[at : at + 1], expected[at : at + 1]) for at in range(60)]
        assert float(np.median(errors)) < 0.06
    else:
        assert worst_row_error(rows, expected) < ERRORS[kv_bits]
    assert front.num_tokens <= CAPACITY


def test_what_left_makes_a_difference(model: tuple[Any, ModelSource], front: FrontEngine) -> None:
    """Else the test above would pass where nothing leaves."""
    reference = KeptReference(model[0], Recent(), len(TOKENS))
    reference.extend(TOKENS)
    expected = reference.run().hidden_states[2][0].numpy()
    assert worst_row_error(rows_of(front, Recent(), 5), expected) > 0.05


def test_a_front_that_nothing_left_gives_what_one_without_positions_gives(
    model: tuple[Any, ModelSource], front: FrontEngine, tmp_path: Path
) -> None:
    plain = make_front(model[1], make_plan(model[1], 2, max_tokens=CAPACITY), tmp_path)
    front.reset()
    tokens = np.array(TOKENS[:9])
    np.testing.assert_array_equal(front.forward(tokens), plain.forward(tokens))


def test_refused_guesses_are_rolled_back_after_tokens_left(front: FrontEngine) -> None:
    front.reset()
    front.forward(np.array(TOKENS[:CAPACITY]))
    front.keep_slots([0, 1, 2, 10, 11, 15])
    once = front.forward(np.array([50]))
    front.forward(np.array([60, 61]))
    front.rollback(6)
    np.testing.assert_array_equal(front.forward(np.array([50])), once)
    with pytest.raises(InputError, match="others left"):
        front.rollback(5)
    front.rollback(0)
    assert front.num_tokens == 0


def test_no_later_prompt_takes_what_stayed_for_its_beginning(front: FrontEngine) -> None:
    """The rows that stayed were computed among tokens that left."""
    front.reset()
    front.forward(np.array(TOKENS[:6]))
    front.keep_slots([0, 1, 2])
    front.keep_steps([TOKENS[:3]])
    assert front.num_tokens == 0
    fresh = front.forward(np.array(TOKENS[:4]))
    front.reset()
    np.testing.assert_array_equal(front.forward(np.array(TOKENS[:4])), fresh)


def test_places_that_there_are_not_and_positions_beyond_the_table_are_refused(
    front: FrontEngine,
) -> None:
    front.reset()
    front.forward(np.array(TOKENS[:6]))
    for slots in ([3, 2], [0, 6], [-1, 2], [1, 1]):
        with pytest.raises(InputError, match="must rise"):
            front.keep_slots(slots)
    for _ in range(POSITIONS // 8 - 1):
        front.keep_slots([0])
        front.forward(np.array(TOKENS[:8]))
    front.keep_slots([0])
    with pytest.raises(InputError, match="exceed the plan's 128"):
        front.forward(np.array(TOKENS[:8]))


def test_an_older_front_says_what_to_do(model: tuple[Any, ModelSource], tmp_path: Path) -> None:
    front = make_front(model[1], make_plan(model[1], 2, max_tokens=CAPACITY), tmp_path)
    front.forward(np.array(TOKENS[:6]))
    with pytest.raises(InputError, match="again with --positions"):
        front.keep_slots([0])

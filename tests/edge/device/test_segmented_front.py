"""A front in segments computes what one graph computes, at every split it moves to."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.device.front import FrontEngine
from edge.errors import FrontError, InputError
from optimizer.artifacts.bundle import front_names
from optimizer.artifacts.plan import Plan
from optimizer.errors import PlanError
from optimizer.export.front.front_graph import export_front
from optimizer.export.sources.model_source import ModelSource, open_source
from tests.optimizer.export.plans import make_plan, worst_row_error
from tests.tiny_models import make_tiny_model

SPLITS = (1, 2, 3)
MAX_TOKENS = 24
TEXT = np.arange(5, 25)
FAMILIES = ("llama", "gemma3")


def segmented(source: ModelSource, **changes: Any) -> Plan:
    plan = make_plan(source, SPLITS[-1], back_start=0, max_tokens=MAX_TOKENS, **changes)
    return replace(plan, front_splits=SPLITS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = tmp_path_factory.mktemp("segmented") / "model"
    make_tiny_model("llama", folder)
    return open_source(folder)


@pytest.fixture(scope="module")
def plan(source: ModelSource) -> Plan:
    return segmented(source)


@pytest.fixture(scope="module")
def edge_dir(source: ModelSource, plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segments")
    export_front(source, plan, folder)
    return folder


@pytest.fixture
def front(edge_dir: Path, plan: Plan) -> FrontEngine:
    return FrontEngine.load(edge_dir, plan=plan, threads=1)[0]


def one_graph(source: ModelSource, split: int, folder: Path, **changes: Any) -> FrontEngine:
    """The front of `split` as one graph."""
    plan = make_plan(source, split, back_start=0, max_tokens=MAX_TOKENS * SPLITS[-1], **changes)
    folder.mkdir()
    export_front(source, plan, folder)
    return FrontEngine.load(folder, plan=plan, threads=1)[0]


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize(
    ("bits", "most"), [((32, 32), 2e-6), ((4, 8), 1e-3)], ids=["float", "4 bits"]
)
def test_every_split_gives_what_one_graph_gives(
    architecture: str, bits: tuple[int, int], most: float, tmp_path: Path
) -> None:
    """Up to the sum before a segment's first norm, which one graph takes inside the norm."""
    make_tiny_model(architecture, tmp_path / "model")
    source = open_source(tmp_path / "model")
    widths = {"front_bits": bits[0], "kv_bits": bits[1]}
    plan = segmented(source, **widths)
    (tmp_path / "segments").mkdir()
    export_front(source, plan, tmp_path / "segments")
    (front,) = FrontEngine.load(tmp_path / "segments", plan=plan, threads=1)
    for split in reversed(SPLITS):
        whole = one_graph(source, split, tmp_path / f"whole-{split}", **widths)
        front.move_to(split)
        front.reset()
        for chunk in (TEXT[:7], TEXT[7:8], TEXT[8:]):
            error = worst_row_error(front.forward(chunk), whole.forward(chunk))
            assert error < most


def test_a_move_down_keeps_the_tokens_and_makes_room_for_more(
    source: ModelSource, front: FrontEngine, tmp_path: Path
) -> None:
    before = front.kv_bytes
    front.forward(TEXT)
    front.move_to(1)
    assert (front.num_tokens, front.capacity, front.split) == (len(TEXT), 3 * MAX_TOKENS, 1)
    assert front.kv_bytes == before
    whole = one_graph(source, 1, tmp_path / "whole")
    whole.forward(TEXT)
    more = np.resize(np.arange(40, 60), 3 * MAX_TOKENS - len(TEXT))
    np.testing.assert_array_equal(front.forward(more), whole.forward(more))
    with pytest.raises(InputError, match=f"{3 * MAX_TOKENS + 1} tokens exceed"):
        front.forward(more[:1])


def test_a_move_up_begins_with_an_empty_cache(source: ModelSource, front: FrontEngine) -> None:
    expected = front.forward(TEXT)
    front.move_to(1)
    front.move_to(3)
    assert (front.num_tokens, front.capacity) == (0, MAX_TOKENS)
    np.testing.assert_array_equal(front.forward(TEXT), expected)


def test_a_segment_is_freed_with_its_last_user(edge_dir: Path, plan: Plan) -> None:
    one, other = FrontEngine.load(edge_dir, plan=plan, threads=1, count=2)
    graphs = one._graphs
    assert graphs.num_loaded == 3
    one.move_to(1)
    gc.collect()
    assert graphs.num_loaded == 3
    other.move_to(2)
    gc.collect()
    assert graphs.num_loaded == 2
    one.move_to(3)
    assert graphs.num_loaded == 3


def test_a_segment_that_is_gone_leaves_the_front_as_it_was(
    source: ModelSource, plan: Plan, tmp_path: Path
) -> None:
    export_front(source, plan, tmp_path)
    (front,) = FrontEngine.load(tmp_path, plan=plan, threads=1)
    front.move_to(1)
    expected = front.forward(TEXT)
    (tmp_path / front_names(plan)[2]).unlink()
    gc.collect()
    with pytest.raises(FrontError, match=r"front-2\.onnx: cannot be loaded"):
        front.move_to(3)
    assert (front.split, front.num_tokens) == (1, len(TEXT))
    front.reset()
    np.testing.assert_array_equal(front.forward(TEXT), expected)


@pytest.mark.parametrize("split", [-1, 4])
def test_a_split_without_a_segment_is_refused(front: FrontEngine, split: int) -> None:
    with pytest.raises(InputError, match=f"no split {split}: this front runs 0, 1, 2, 3"):
        front.move_to(split)


def test_at_split_0_nothing_is_in_memory_and_nothing_runs(front: FrontEngine) -> None:
    expected = front.forward(TEXT)
    front.move_to(0)
    gc.collect()
    assert (front._graphs.num_loaded, front.kv_bytes, front.num_tokens) == (0, 0, 0)
    with pytest.raises(InputError, match="moved to split 0"):
        front.forward(TEXT)
    front.move_to(3)
    np.testing.assert_array_equal(front.forward(TEXT), expected)


@pytest.mark.parametrize(
    ("token_ids", "kept"), [((5, 6, 7, 9), 3), ((5, 6), 2), ((), 0), (range(5, 40), 20)]
)
def test_what_another_sequence_begins_with_is_kept(
    front: FrontEngine, token_ids: tuple[int, ...], kept: int
) -> None:
    front.forward(TEXT)
    front.keep(token_ids)
    assert front.num_tokens == kept


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"front_splits": (2, 1, 3)}, "must rise"),
        ({"front_splits": (0, 3)}, "must rise"),
        ({"front_splits": tuple(range(1, 9))}, "8 front splits: the model has 4 layers"),
        ({"front_splits": (1, 2)}, "the last must be the split, 3"),
        ({"front_splits": (1, 3), "back_start": 1}, "back start 0, not 1"),
    ],
)
def test_splits_that_no_session_can_move_between_are_refused(
    plan: Plan, changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(PlanError, match=reason):
        replace(plan, **changes)  # type: ignore[arg-type]


def test_a_plan_without_segments_is_written_as_before(plan: Plan) -> None:
    assert "front_splits" not in replace(plan, front_splits=()).to_yaml()
    assert replace(plan, front_splits=()).splits == (3,)


def test_a_cache_is_resized_one_buffer_at_a_time(
    front: FrontEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = front._segments[0]
    alive: list[weakref.ref[Any]] = []
    most = 0
    make = segment._empty

    def counted(capacity: int) -> Any:
        nonlocal most
        made = make(capacity)
        alive.append(weakref.ref(made))
        most = max(most, sum(each() is not None for each in alive))
        return made

    monkeypatch.setattr(segment, "_empty", counted)
    segment.resize(2 * MAX_TOKENS, 0)
    count = len(alive)
    segment.resize(MAX_TOKENS, 0)
    assert (count, most) == (2, 3)

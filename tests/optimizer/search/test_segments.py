"""A front in segments of equal size."""

from __future__ import annotations

from dataclasses import replace

import pytest

from optimizer.artifacts.plan import Plan
from optimizer.errors import PlanError
from optimizer.search.segments import in_segments
from tests.conftest import ModelBench


@pytest.fixture
def plan(bench: ModelBench) -> Plan:
    return bench.plan(3)


@pytest.mark.parametrize(("count", "splits"), [(1, (3,)), (2, (1, 3)), (3, (1, 2, 3))])
def test_the_last_segment_ends_at_the_split(
    plan: Plan, count: int, splits: tuple[int, ...]
) -> None:
    assert in_segments(plan, count).splits == splits


def test_a_front_cannot_have_more_segments_than_layers(plan: Plan) -> None:
    with pytest.raises(PlanError, match="4 segments of a front of 3 layers"):
        in_segments(plan, 4)


def test_a_whole_model_on_the_device_has_no_split_to_move(bench: ModelBench) -> None:
    with pytest.raises(PlanError, match="no split to move"):
        in_segments(bench.plan(bench.num_layers), 2)


def test_fewer_layers_hold_more_tokens_up_to_the_models_context(plan: Plan) -> None:
    cut = replace(in_segments(plan, 3), max_tokens=100)
    longest = plan.model.geometry.context_length
    assert [cut.capacity(split) for split in (3, 2, 1, 0)] == [
        100,
        150,
        min(300, longest),
        longest,
    ]

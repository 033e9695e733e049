"""Plans whose device reads layers from storage: only as many as needed, priced by the read rate."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hwprofiles.profiles.catalog import load_device
from optimizer.artifacts.plan import ModelRef, Plan
from optimizer.artifacts.prediction import Limits, ProfilesUsed
from optimizer.artifacts.specs import load_spec
from optimizer.cost.edge import front_prefill, front_step
from optimizer.cost.link import LinkPoint
from optimizer.cost.streaming import (
    layers_of_share,
    packed_layer_bytes,
    reading_s,
    streamed_bytes,
    streamed_places,
)
from optimizer.errors import PlanError
from optimizer.search.planner import Planner
from optimizer.search.problem import Problem
from optimizer.search.request import make_problem
from optimizer.search.streamed import with_streaming
from optimizer.search.to_plan import plan_of

LINK = LinkPoint(up_bytes_per_s=2e6, down_bytes_per_s=8e6, rtt_s=0.02)
GIB = 1 << 30


def problem(edge: str = "raspberry-pi-5-8gb", split: int = 32, memory: float = 2 * GIB) -> Problem:
    return make_problem(
        load_spec("llama-2-7b").geometry,
        load_device(edge),
        load_device("l4-24gb"),
        limits=Limits(edge_memory_bytes=memory, prompt_tokens=64),
        objective="tbt",
        max_tokens=512,
        splits=[split],
        front_bits=(4,),
        kv_bits=(16,),
        chunks=(16, 64),
    )


def planned(asked: Problem) -> Plan:
    found = Planner(asked).solve(LINK)
    assert found is not None
    model = ModelRef(id="m", sha256="0" * 64, geometry=asked.geometry)
    profiles = ProfilesUsed(edge="e", cloud="c", link="l", epsilon=0.5)
    return plan_of(found.grid, found.cell, model=model, profiles=profiles)


@pytest.mark.parametrize("split", [32, 24])
def test_a_front_beyond_the_memory_is_planned_with_the_time_of_reading(split: int) -> None:
    asked = problem(split=split, memory=1.5 * GIB)
    assert Planner(asked).solve(LINK) is None
    plan = planned(with_streaming(asked))
    assert 0 < plan.streamed_layers < split
    predicted = plan.predicted
    assert predicted is not None
    assert predicted.edge_memory_bytes <= 1.5 * GIB
    rate = asked.edge.storage_read_bytes_per_s
    assert rate is not None
    read_s = streamed_bytes(plan) / rate.effective
    assert predicted.step is not None
    assert predicted.step.front_s == pytest.approx(read_s)
    assert predicted.longest_tbt_s >= read_s
    assert plan.prefill_chunk == 64  # a chunk reads everything once


def test_what_fits_is_not_streamed() -> None:
    assert planned(with_streaming(problem(memory=6 * GIB))).streamed_layers == 0


def test_a_fast_storage_is_hidden_behind_computing() -> None:
    asked = with_streaming(problem(memory=2 * GIB))
    rate = asked.edge.storage_read_bytes_per_s
    assert rate is not None
    fast = replace(asked.edge, storage_read_bytes_per_s=replace(rate, value=1e12))
    plan = planned(replace(asked, edge=fast))
    alone = front_step(
        fast, asked.geometry, split=32, weight_bits=4, kv_bits=16, num_rows=1, position=127
    )
    assert plan.streamed_layers > 0
    assert plan.predicted is not None
    assert plan.predicted.step is not None
    assert plan.predicted.step.front_s == pytest.approx(float(alone.total_s), rel=1e-3)


def test_a_prompt_reads_once_a_chunk() -> None:
    device, geometry = load_device("raspberry-pi-5-8gb"), load_spec("llama-2-7b").geometry
    chunks = front_prefill(
        device,
        geometry,
        split=4,
        weight_bits=4,
        kv_bits=16,
        num_tokens=40,
        chunk=16,
        reading_s=1e3,
    )
    assert chunks.tolist() == [1e3, 1e3, 1e3]


def test_streamed_layers_lie_evenly_among_the_others() -> None:
    plan = planned(with_streaming(problem()))
    assert streamed_places(plan, 0) == ()
    assert streamed_places(plan, 1) == (16,)
    assert streamed_places(plan, 30) == tuple(range(1, 31))
    for count in range(1, 31):
        places = streamed_places(plan, count)
        assert len(set(places)) == count
        assert 1 <= min(places) <= max(places) <= 30
    one = packed_layer_bytes(plan.model.geometry, 4, "small")
    assert streamed_bytes(replace(plan, streamed_layers=7)) == pytest.approx(7 * one)


def test_shares_of_a_front() -> None:
    assert [layers_of_share(share, 32, whole=True) for share in (0.0, 0.5, 1.0)] == [0, 15, 30]
    assert [layers_of_share(1.0, split, whole=False) for split in (0, 1, 2)] == [0, 0, 1]


def test_without_a_read_rate_nothing_is_streamed() -> None:
    asked = problem()
    unknown = replace(asked.edge, storage_read_bytes_per_s=None)
    with pytest.raises(PlanError, match="no read rate of its storage"):
        with_streaming(replace(asked, edge=unknown))
    plan = planned(with_streaming(asked))
    with pytest.raises(PlanError, match="'splitpoint profile device' measures it"):
        reading_s(unknown, plan)
    assert reading_s(unknown, replace(plan, streamed_layers=0)) == 0.0

"""`auto` finds the place with the least TTFT of every configuration, as trying all three does."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from hwprofiles.profiles.catalog import load_device
from optimizer.artifacts.plan import ModelRef, Partition
from optimizer.artifacts.prediction import Limits, ProfilesUsed
from optimizer.artifacts.prefill import PREFILL_PLACES, PrefillPlace
from optimizer.artifacts.specs import load_spec
from optimizer.cost.levels import level_at
from optimizer.cost.link import LinkPoint
from optimizer.cost.request import predict_request
from optimizer.cost.setting import RequestSetting
from optimizer.errors import PlanError
from optimizer.search.grid import Grid
from optimizer.search.link_independent import LinkIndependent
from optimizer.search.planner import Planner
from optimizer.search.problem import Cell, Problem
from optimizer.search.request import make_problem
from optimizer.search.solve import best
from optimizer.search.to_plan import plan_of
from tests.optimizer.search.instances import links, problems

CLOSE: dict[str, Any] = {"rel": 1e-9, "abs": 1e-12}


def ttft_at(problem: Problem, link: LinkPoint, cell: Cell, place: PrefillPlace) -> float:
    """One configuration's TTFT with its prompt computed there, from the scalar models."""
    space = problem.space
    split, front = space.splits[cell.split], space.fronts[cell.front]
    bits = front.bits_at(split)
    assert bits is not None
    setting = RequestSetting(
        edge=problem.edge,
        cloud=problem.cloud,
        link=link,
        geometry=problem.geometry,
        partition=Partition(
            split=split, front_bits=front.front_bits, back_bits=space.back_bits[cell.back]
        ),
        kv_bits=space.kv_bits[cell.kv],
        level=level_at(space.levels[cell.level], problem.quality, split),
        chunk=space.chunks[cell.chunk],
        exact_front=problem.exact_front,
        front_layer_bits=bits if front.layer_bits else (),
        prefill=place,
    )
    return predict_request(
        setting,
        prompt_tokens=problem.limits.prompt_tokens,
        new_tokens=1,
        batch=problem.limits.num_sessions,
    ).ttft_s


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(problem=problems(), link=links)
def test_auto_is_the_best_of_three(problem: Problem, link: LinkPoint) -> None:
    fixed = LinkIndependent(replace(problem, back_from=0, prefill=PREFILL_PLACES))
    grid = Grid(fixed, link)
    found = np.broadcast_to(grid.ttft_s, problem.space.shape)
    for index in itertools.product(*map(range, problem.space.shape)):
        cell = Cell(*index)
        if not fixed.exists[cell]:
            continue
        seconds = {place: ttft_at(problem, link, cell, place) for place in PREFILL_PLACES}
        assert found[cell] == pytest.approx(min(seconds.values()), **CLOSE)
        chosen = grid.prefill_of(cell)
        assert seconds[chosen] == pytest.approx(min(seconds.values()), **CLOSE)
        if not 0 < problem.space.splits[cell.split] < problem.geometry.num_layers:
            assert chosen == "edge"


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(problem=problems(), link=links)
def test_a_place_that_is_asked_for_is_taken(problem: Problem, link: LinkPoint) -> None:
    for place in PREFILL_PLACES:
        fixed = LinkIndependent(replace(problem, back_from=0, prefill=(place,)))
        grid = Grid(fixed, link)
        cell = best(grid, fixed.exists)
        assert cell is not None
        is_split = 0 < problem.space.splits[cell.split] < problem.geometry.num_layers
        assert grid.prefill_of(cell) == (place if is_split else "edge")
        value = np.broadcast_to(grid.ttft_s, problem.space.shape)[cell]
        assert value == pytest.approx(ttft_at(problem, link, cell, place), **CLOSE)


def smol(**changes: Any) -> Problem:
    changes = {"back_from": 0, "splits": (8,), "objective": "ttft", **changes}
    return make_problem(
        load_spec("smollm2-135m").geometry,
        load_device("raspberry-pi-5-8gb"),
        load_device("local-epyc-2core"),
        limits=Limits(prompt_tokens=600),
        max_tokens=800,
        **changes,
    )


@pytest.mark.parametrize("prefill", ["edge", "cloud", "both", "auto"])
def test_the_plan_says_where_and_promises_what_the_search_compared(prefill: Any) -> None:
    problem = smol(prefill=prefill)
    link = LinkPoint(up_bytes_per_s=1e5, down_bytes_per_s=1e6, rtt_s=0.05)
    found = Planner(problem).solve(link)
    assert found is not None
    plan = plan_of(
        found.grid,
        found.cell,
        model=ModelRef(id="m", sha256="0" * 64, geometry=problem.geometry),
        profiles=ProfilesUsed(edge="e", cloud="c", link="l"),
    )
    assert plan.prefill == found.grid.prefill_of(found.cell)
    assert prefill in (plan.prefill, "auto")
    assert plan.predicted is not None
    value = np.broadcast_to(found.grid.ttft_s, problem.space.shape)[found.cell]
    assert plan.predicted.ttft_s == pytest.approx(value, **CLOSE)


def test_without_all_layers_on_the_server_auto_is_the_edge_and_others_are_refused() -> None:
    assert smol(prefill="auto", back_from=None).prefill == ("edge",)
    for place in ("cloud", "both"):
        with pytest.raises(PlanError, match="--back-from 0"):
            smol(prefill=place, back_from=None)

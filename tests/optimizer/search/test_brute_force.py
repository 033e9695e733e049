"""The search finds what trying everything finds, for every objective and every limit.

The brute force walks the scalar cost models one configuration at a time; each example asks it
for many sets of limits, drawn around the values that configurations have, so that some bind, some
exclude nearly everything, and some exclude everything.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimizer.artifacts.prediction import Limits
from optimizer.cost.link import LinkPoint
from optimizer.search.grid import Grid
from optimizer.search.link_independent import LinkIndependent
from optimizer.search.problem import OBJECTIVES, Cell, Problem
from optimizer.search.solve import KEYS, ORDER, best, pareto, value_of
from tests.optimizer.search.brute import BruteForce, Outcome
from tests.optimizer.search.instances import links, problems

EXAMPLES, LIMITS_AN_EXAMPLE = 40, 16  # times five objectives: 3,200 instances
CLOSE: dict[str, Any] = {"rel": 1e-9, "abs": 1e-12}
LIMIT_FIELDS = {
    "edge memory": "edge_memory_bytes",
    "cloud memory": "cloud_memory_bytes",
    "cloud memory per session": "cloud_memory_per_session_bytes",
    "TBT": "max_tbt_s",
    "TTFT": "max_ttft_s",
    "quality drop": "max_quality_drop_pct",
}


def draw_limits(brute: BruteForce, rng: random.Random) -> Limits:
    """Some limits, each close above or below what some configuration puts against it."""
    base = brute.problem.limits
    found = {}
    for name, field in LIMIT_FIELDS.items():
        if rng.random() < 0.45:
            outcome = rng.choice(brute.outcomes)
            value = brute.values(outcome, base, brute.problem.max_tokens)[name]
            found[field] = max(value * rng.choice([0.7, 0.999, 1.001, 1.3, 2.0]), 1e-9)
    fields: dict[str, Any] = dict(found)
    return replace(base, **fields)


def value(brute: BruteForce, outcome: Outcome, key: str, tokens: int) -> float:
    """One key of the lexicographic order, of one configuration."""
    reading: dict[str, Callable[[], float]] = {
        "tbt": lambda: outcome.tbt_s,
        "ttft": lambda: outcome.ttft_s,
        "cloud-cost": lambda: outcome.cloud_s_per_token,
        "quality": lambda: outcome.quality_drop_pct,
        "context": lambda: -float(tokens),
        "cost": lambda: outcome.cost_per_million,
        "edge-memory": lambda: brute.edge_bytes(outcome.cell, tokens),
    }
    return reading[key]()


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(problem=problems(), link=links, seed=st.integers(0, 2**32))
def test_search_equals_brute_force(problem: Problem, link: LinkPoint, seed: int) -> None:
    rng = random.Random(seed)
    fixed = LinkIndependent(problem)
    brute = BruteForce(problem, link, fixed.lengths)
    for _ in range(LIMITS_AN_EXAMPLE):
        limits = draw_limits(brute, rng)
        kept = [o for o in brute.outcomes if brute.keeps(o, limits, problem.max_tokens)]
        for objective in OBJECTIVES:
            if objective == "cost" and not problem.has_cost:
                continue
            fixed.problem = replace(problem, objective=objective)
            grid = Grid(fixed, link, limits)
            found = best(grid, grid.feasible())
            if not kept:
                assert found is None
                continue
            tokens = {
                outcome.cell: brute.longest(outcome, limits)
                if objective == "context"
                else problem.max_tokens
                for outcome in kept
            }
            assert found is not None
            mine = next(outcome for outcome in kept if outcome.cell == found)
            left = kept
            for place, key in enumerate(ORDER[objective]):
                values = [value(brute, o, key, tokens[o.cell]) for o in left]
                slack = (0.0 if place else problem.slack) + 1e-9
                good = min(values) + slack * abs(min(values)) + 1e-12
                assert value(brute, mine, key, tokens[mine.cell]) <= good
                left = [o for o, v in zip(left, values, strict=True) if v <= good]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(problem=problems(), link=links)
def test_every_cell_predicts_what_the_scalar_models_predict(
    problem: Problem, link: LinkPoint
) -> None:
    fixed = LinkIndependent(problem)
    grid = Grid(fixed, link)
    brute = BruteForce(problem, link, fixed.lengths)
    assert int(fixed.exists.sum()) == len(brute.outcomes)
    for outcome in brute.outcomes:
        for key in KEYS:
            expected = value(brute, outcome, key, problem.max_tokens)
            assert value_of(grid, outcome.cell, key) == pytest.approx(expected, **CLOSE), key
        slowest = 0.0
        for index, length in enumerate(fixed.lengths):
            slowest = max(slowest, outcome.longest_tbt_s[length])
            array = np.broadcast_to(grid.longest_tbt_s(index), problem.space.shape)
            assert array[outcome.cell] == pytest.approx(slowest, **CLOSE)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(problem=problems(), link=links)
def test_the_pareto_front_is_what_nothing_beats(problem: Problem, link: LinkPoint) -> None:
    axes = ("tbt", "cloud-cost", "edge-memory", "quality")
    grid = Grid(LinkIndependent(problem), link)
    mask = grid.feasible()
    front = pareto(grid, mask, axes)
    points = {
        tuple(map(int, cell)): np.array([value_of(grid, Cell(*cell), axis) for axis in axes])
        for cell in np.argwhere(mask).tolist()
    }
    on_front = [points[tuple(cell)] for cell in front]
    for point in points.values():
        beaten_or_equal = any(bool((other <= point * (1 + 1e-8)).all()) for other in on_front)
        assert beaten_or_equal
    for cell in front:
        mine = points[tuple(cell)]
        better = [p for p in points.values() if (p < mine * (1 - 1e-8)).any()]
        assert not any(bool((p <= mine * (1 - 1e-8)).all()) for p in better)

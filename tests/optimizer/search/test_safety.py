"""Limits at a quantile: what the search holds against a limit is what the plan says of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from hwprofiles.links.catalog import load_link
from hwprofiles.profiles.catalog import load_device
from optimizer.artifacts.plan import ModelRef, load_plan
from optimizer.artifacts.prediction import Limits, ProfilesUsed
from optimizer.artifacts.specs import load_spec
from optimizer.cost.link import LinkPoint, link_at
from optimizer.cost.money import Prices
from optimizer.errors import PlanError
from optimizer.search.planner import Planner
from optimizer.search.problem import Cell, Problem
from optimizer.search.request import make_problem
from optimizer.search.to_plan import plan_of
from tests.optimizer.hot_devices import hot
from tests.optimizer.search.instances import links, problems

SMOL = load_spec("smollm2-135m").geometry
MODEL = ModelRef(id="m", sha256="ab" * 32, geometry=SMOL)
USED = ProfilesUsed(edge="e", cloud="c", link="l")
LINK = link_at(load_link("5g"), epsilon=0.5)


def problem(**limits: float) -> Problem:
    return make_problem(
        SMOL,
        load_device("local-epyc-2core"),
        load_device("local-epyc-2core-cloud"),
        limits=Limits(**limits),  # type: ignore[arg-type]
        back_from=0,
        prefill="auto",
    )


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(asked=problems(), link=links)
def test_the_grid_is_as_sure_as_the_plan_of_each_configuration(
    asked: Problem, link: LinkPoint
) -> None:
    link = replace(link, rtt_sd=0.2, rate_sd=0.3)
    asked = replace(
        asked,
        edge=hot(asked.edge, share=0.8, watts=6.0, idle=2.5),
        prices=Prices(cloud_per_hour=2.0, energy_per_kwh=0.3),
    )
    limits = replace(
        asked.limits,
        max_ttft_s=1e9,
        max_tbt_s=1e9,
        max_joules_per_token=1e9,
        max_cost_per_million=1e9,
        quantile=0.9,
    )
    grid = Planner(asked).grid(link, limits)
    model = ModelRef(id="m", sha256="ab" * 32, geometry=asked.geometry)
    held = {item.name: item.values for item in grid.constraints}
    cells = np.argwhere(grid.fixed.exists)
    for index in np.linspace(0, len(cells) - 1, 6).astype(int):
        cell = Cell(*map(int, cells[index]))
        predicted = plan_of(grid, cell, model=model, profiles=USED).predicted
        assert predicted is not None
        assert predicted.ranges is not None
        if asked.objective == "context":
            continue  # limits hold at the required length, the plan's predictions at its longest
        shape = grid.fixed.exists.shape
        assert predicted.energy is not None
        assert predicted.cost is not None
        ranges = predicted.ranges
        for name, found in (
            ("TTFT", ranges.ttft_s),
            ("TBT", ranges.longest_tbt_s),
            ("edge memory", ranges.edge_memory_bytes),
            ("energy a token", predicted.energy.joules_per_token),
            ("cost", predicted.cost.per_million_tokens),
        ):
            value = np.broadcast_to(held[name], shape)[cell]
            assert found.p90 == pytest.approx(value, rel=1e-6), (name, cell)


def test_a_limit_that_the_median_keeps_may_be_broken_one_time_in_ten() -> None:
    planner = Planner(problem())
    free = planner.solve(LINK)
    assert free is not None
    predicted = plan_of(free.grid, free.cell, model=MODEL, profiles=USED).predicted
    assert predicted is not None
    assert predicted.ranges is not None
    slowest = predicted.ranges.longest_tbt_s

    def is_kept(limit_s: float, quantile: float) -> bool:
        limits = replace(planner.problem.limits, max_tbt_s=limit_s, quantile=quantile)
        return bool(planner.grid(LINK, limits).feasible()[free.cell])

    assert is_kept(1.001 * slowest.p50, 0.5)
    assert not is_kept(1.001 * slowest.p50, 0.9)
    assert is_kept(1.001 * slowest.p90, 0.9)
    assert not is_kept(0.999 * slowest.p50, 0.5)
    assert is_kept(1.001 * slowest.p10, 0.1)


def test_a_higher_quantile_never_allows_more() -> None:
    low, high = (
        Planner(problem(max_tbt_s=0.05, max_ttft_s=0.4, edge_memory_bytes=3e8, quantile=q))
        for q in (0.5, 0.9)
    )
    assert np.all(low.grid(LINK).feasible() | ~high.grid(LINK).feasible())
    assert low.grid(LINK).feasible().sum() > high.grid(LINK).feasible().sum()


@pytest.mark.parametrize("quantile", [0.0, 1.0, -1.0, 2.0])
def test_a_quantile_is_a_probability(quantile: float) -> None:
    with pytest.raises(PlanError, match="quantile"):
        Limits(quantile=quantile)


def test_a_plan_keeps_its_ranges_and_an_older_one_has_none(tmp_path: object) -> None:
    from pathlib import Path

    found = Planner(problem()).solve(LINK)
    assert found is not None
    plan = plan_of(found.grid, found.cell, model=MODEL, profiles=USED)
    path = Path(str(tmp_path)) / "plan.yaml"
    path.write_text(plan.to_yaml())
    assert load_plan(path) == plan
    assert "quantile" not in path.read_text()  # an earlier version reads limits without it
    lines = path.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip() == "ranges:")
    end = next(
        (i for i in range(start + 1, len(lines)) if not lines[i].startswith("    ")), len(lines)
    )
    path.write_text("\n".join(lines[:start] + lines[end:]) + "\n")
    older = load_plan(path).predicted
    assert older is not None
    assert older.ranges is None

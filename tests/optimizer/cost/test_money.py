"""Money for a token, by hand and as the search counts it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from hwprofiles.profiles.catalog import load_device
from optimizer.artifacts.prediction import Limits
from optimizer.artifacts.specs import load_spec
from optimizer.cost.link import LinkPoint
from optimizer.cost.money import NO_PRICES, Prices, has_measured_watts, watts_of
from optimizer.errors import PlanError
from optimizer.search.alternatives import alternatives
from optimizer.search.planner import Found, Planner
from optimizer.search.problem import Problem
from optimizer.search.request import make_problem
from optimizer.search.solve import value_of
from tests.optimizer.hot_devices import hot

PI = load_device("raspberry-pi-5-8gb")  # 25 W
LINK = LinkPoint(up_bytes_per_s=1e6, down_bytes_per_s=4e6, rtt_s=0.04)


def problem(**changes: Any) -> Problem:
    changes = {"edge": PI, "objective": "cost", **changes}
    edge = changes.pop("edge")
    return make_problem(
        load_spec("smollm2-135m").geometry,
        edge,
        load_device("local-epyc-2core"),
        limits=Limits(max_quality_drop_pct=3.0),
        slack=0.0,
        **changes,
    )


def solved(**changes: Any) -> tuple[Planner, Found]:
    planner = Planner(problem(**changes))
    found = planner.solve(LINK)
    assert found is not None
    return planner, found


def test_a_cost_by_hand() -> None:
    prices = Prices(cloud_per_hour=3.6, energy_per_kwh=0.36)
    # 0.01 s of a server at 0.001 a second; 1 J at 0.0000001 a joule.
    assert prices.cost(cloud_s=0.01, joules=1.0) == pytest.approx(1e-5 + 1e-7, rel=1e-12)
    assert Prices(cloud_per_hour=3.6).cost(cloud_s=0.01, joules=1.0) == pytest.approx(1e-5)
    assert Prices(energy_per_kwh=0.36).cost(cloud_s=0.01, joules=1.0) == pytest.approx(1e-7)


def test_a_configurations_cost_is_its_parts_by_hand() -> None:
    _, found = solved(prices=Prices(cloud_per_hour=2.0, energy_per_kwh=0.3), splits=(8,))
    parts, cell = found.grid.round, found.cell
    shape = found.grid.problem.space.shape

    def at(values: Any) -> float:
        import numpy as np

        return float(np.broadcast_to(values, shape)[cell])

    cloud_s = value_of(found.grid, cell, "cloud-cost")
    device_s = at(parts.front_s) + at(parts.encode_s)
    by_hand = 1e6 * (cloud_s * 2.0 / 3600 + 25.0 * device_s * 0.3 / 3.6e6)
    assert value_of(found.grid, cell, "cost") == pytest.approx(by_hand, rel=1e-12)


def test_with_a_server_alone_the_least_cost_is_the_least_cloud_time() -> None:
    _, by_cost = solved(prices=Prices(cloud_per_hour=2.0))
    _, by_time = solved(objective="cloud-cost")
    assert by_cost.cell == by_time.cell


def test_dear_energy_moves_layers_to_the_server() -> None:
    cheap, _ = solved(prices=Prices(cloud_per_hour=2.0, energy_per_kwh=0.01))
    planner, dear = solved(prices=Prices(cloud_per_hour=0.01, energy_per_kwh=100.0))
    assert planner.split_of(dear.cell) == 0
    assert cheap.split_of(solved(prices=cheap.problem.prices)[1].cell) > 0
    rows = alternatives(planner, LINK, dear)
    costs = [row.cost_per_million_tokens for row in rows]
    assert all(cost is not None and cost >= costs[0] for cost in costs)  # type: ignore[operator]


def test_without_prices_rows_have_no_cost() -> None:
    planner, found = solved(objective="tbt")
    assert {row.cost_per_million_tokens for row in alternatives(planner, LINK, found)} == {None}


def test_energy_counts_only_where_watts_are_stated() -> None:
    unknown = replace(PI, power=None)
    assert watts_of(PI) == 25.0
    assert watts_of(unknown) is None
    prices = Prices(energy_per_kwh=0.3)
    assert prices.leaves_out(unknown)
    assert not prices.leaves_out(PI)
    assert not NO_PRICES.leaves_out(unknown)
    with pytest.raises(PlanError, match="needs a price above 0 that counts here"):
        problem(edge=unknown, prices=prices)


def test_measured_watts_count_before_stated_ones() -> None:
    measured = hot(PI, share=1.0, watts=6.5)
    assert (watts_of(measured), watts_of(PI)) == (6.5, 25.0)
    assert (has_measured_watts(measured), has_measured_watts(PI)) == (True, False)
    prices = Prices(energy_per_kwh=0.3)
    _, stated = solved(prices=prices, splits=(8,))
    _, found = solved(prices=prices, splits=(8,), edge=measured)
    costs = [value_of(one.grid, stated.cell, "cost") for one in (found, stated)]
    assert costs[0] == pytest.approx(costs[1] * 6.5 / 25.0)


@pytest.mark.parametrize("price", [-1.0, math.inf, math.nan])
def test_a_price_is_a_number(price: float) -> None:
    with pytest.raises(PlanError, match="must be a finite number"):
        Prices(cloud_per_hour=price)
    with pytest.raises(PlanError, match="must be a finite number"):
        Prices(energy_per_kwh=price)


def test_the_objective_cost_needs_a_price() -> None:
    for prices in (NO_PRICES, Prices(cloud_per_hour=0.0)):
        with pytest.raises(PlanError, match="objective cost"):
            problem(prices=prices)

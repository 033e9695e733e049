"""How many servers a load needs: the fewest that keep the budget, as a scan finds them too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from optimizer.errors import ScenarioError
from optimizer.simulate.assemble import Inputs, with_servers
from optimizer.simulate.fleet import fleet_size
from optimizer.simulate.measures import measure
from optimizer.simulate.scenario import Arrivals, Budget, Fault, Lengths, Scenario, Servers
from optimizer.simulate.simulation import simulate
from tests.optimizer.simulate.scenes import PLAN, scene

PRICE = 2.0
TWO = Servers(device="local-epyc-2core", count=2)


def busy(num_clients: int, *, tbt_s: float = 0.12, **changes: object) -> Scenario:
    """Clients that ask again at once, of slow servers."""
    return scene(
        group={
            "count": num_clients,
            "arrivals": Arrivals(kind="closed", think_s=0.0),
            "prompt_tokens": Lengths(median=40),
            "output_tokens": Lengths(median=20),
        },
        duration_s=8.0,
        budget=Budget(tbt_s=tbt_s),
        servers=Servers(device="local-epyc-2core", cost_per_hour=PRICE),
        **changes,
    )


def is_kept(inputs: Inputs, count: int) -> bool:
    one = replace(inputs, scenario=with_servers(inputs.scenario, count))
    found = measure(one.scenario, [simulate(one.setup())])
    return one.scenario.budget.kept_by(found.first_in_time, found.further_in_time)


def test_the_fewest_servers_are_those_of_a_scan() -> None:
    inputs = Inputs(scenario=busy(40, tbt_s=0.1), plan=PLAN)
    told: list[int] = []
    found = fleet_size(inputs, processes=1, progress=told.append)
    scanned = next(count for count in range(1, 41) if is_kept(inputs, count))
    assert found.num_servers == scanned == 3
    assert sorted(told) == [point.num_servers for point in found.tried]
    by_number = {point.num_servers: point for point in found.tried}
    assert by_number[scanned].kept
    assert not by_number[scanned - 1].kept
    # The same tokens over more servers cost more.
    costs = [point.cost_per_million_tokens for point in found.tried if point.kept]
    assert costs == sorted(costs)
    assert costs[0] > 0


def test_one_server_is_enough_for_one_client() -> None:
    found = fleet_size(Inputs(scenario=busy(1, tbt_s=5.0), plan=PLAN), processes=1)
    assert (found.num_servers, len(found.tried)) == (1, 1)


def test_a_load_that_rises_late_counts_as_a_whole(tmp_path: Path) -> None:
    """Nothing for a minute and a half, then forty questions at once."""
    trace = tmp_path / "late.csv"
    rows = ["0,40,5"] + [f"{90 + index / 100:.2f},40,20" for index in range(200)]
    trace.write_text("t_s,prompt_tokens,output_tokens\n" + "\n".join(rows), encoding="utf-8")
    scenario = busy(40, tbt_s=0.1)
    late = replace(scenario.clients[0], arrivals=Arrivals(kind="trace", trace=str(trace)))
    inputs = Inputs(scenario=replace(scenario, clients=(late,), duration_s=100.0), plan=PLAN)
    found = fleet_size(inputs, processes=1)
    assert found.num_servers > 1
    assert is_kept(inputs, found.num_servers)


def test_a_server_that_a_fault_names_is_there() -> None:
    fault = Fault(kind="server_loss", at_s=2.0, duration_s=0.1, server=1)
    inputs = Inputs(scenario=replace(busy(4, tbt_s=5.0), servers=TWO, faults=(fault,)), plan=PLAN)
    found = fleet_size(inputs, processes=1)
    assert [point.num_servers for point in found.tried] == [found.num_servers] == [2]


def test_what_servers_cannot_mend_is_one_clear_line() -> None:
    with pytest.raises(ScenarioError, match=r"with 6 servers, .* servers are not what is slow"):
        fleet_size(Inputs(scenario=busy(6, tbt_s=1e-4), plan=PLAN), processes=1)


def test_a_budget_and_a_server_are_needed() -> None:
    with pytest.raises(ScenarioError, match="servers auto: needs a budget"):
        fleet_size(Inputs(scenario=replace(busy(2), budget=Budget()), plan=PLAN), processes=1)
    layers = PLAN.model.geometry.num_layers
    whole = replace(
        PLAN, partition=replace(PLAN.partition, split=layers), back_start=layers, level="q3"
    )
    with pytest.raises(ScenarioError, match="this plan has no server"):
        fleet_size(Inputs(scenario=busy(2), plan=whole), processes=1)

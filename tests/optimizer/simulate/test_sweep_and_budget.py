"""Any key can be swept, and a budget's questions are answered by simulation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from optimizer.errors import OptimizerError
from optimizer.simulate.assemble import Inputs
from optimizer.simulate.budget import budget_view
from optimizer.simulate.measures import measure, ttft_s
from optimizer.simulate.scenario import Arrivals, Budget, Lengths, Link
from optimizer.simulate.sweep import sweep_points
from tests.optimizer.simulate.scenes import PLAN, run, scene

INPUTS = Inputs(scenario=scene(), plan=PLAN)


def test_a_sweep_changes_keys_of_plan_and_scenario() -> None:
    points = sweep_points(
        INPUTS, ["split=5,20", "clients.clients.link.quantile=0.9", "servers=3", "level=q4"]
    )
    assert [values["split"] for values, _ in points] == [5, 20]
    for values, point in points:
        assert point.plan.partition.split == point.plan.back_start == values["split"]
        assert point.plan.level == "q4"
        assert point.scenario.clients[0].link.quantile == 0.9
        assert point.scenario.servers.count == 3


@pytest.mark.parametrize(
    ("sweep", "key", "expected"),
    [
        ("clients=7", "num_clients", 7),
        ("duration_s=5", "duration_s", 5.0),
        ("budget.tbt_s=0.2", "budget", Budget(tbt_s=0.2)),
    ],
)
def test_one_swept_key(sweep: str, key: str, expected: object) -> None:
    [(_, point)] = sweep_points(INPUTS, [sweep])
    assert getattr(point.scenario, key) == expected


@pytest.mark.parametrize(
    ("sweep", "reason"),
    [
        ("colour=1,2", "no key 'colour'"),
        ("servers.colour=1", "no key 'servers.colour'"),
        ("clients.others.count=1", "nothing below 'others'"),
        ("split=99", "the model has 30 layers"),
        ("servers.count=many", "servers.count"),
        ("split", "key=value"),
        ("split=", "key=value"),
        ("split=[" * 9, "not valid YAML"),
        ("split={[1]: 2}", "a key must be text"),
        ("split=!!bool maybe", "not valid YAML"),
        ("duration=1" + "0" * 2000, "more than 1000 digits"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(sweep: str, reason: str) -> None:
    with pytest.raises(OptimizerError, match=reason):
        sweep_points(INPUTS, [sweep])


def budgeted(tbt_s: float) -> Inputs:
    scenario = scene(
        group={
            "count": 2,
            "link": Link(mix={"lan": 1.0}),
            "arrivals": Arrivals(kind="closed", think_s=0.1),
            "prompt_tokens": Lengths(median=20),
            "output_tokens": Lengths(median=30),
        },
        duration_s=6.0,
        drain_s=5.0,
        budget=Budget(tbt_s=tbt_s),
    )
    return Inputs(scenario=scenario, plan=PLAN)


def test_the_number_of_clients_carried_is_where_the_budget_breaks() -> None:
    inputs = budgeted(0.04)
    base = measure(inputs.scenario, [run(inputs.scenario)])
    view = budget_view(inputs, base, processes=1)
    assert view.kept
    assert not view.at_least
    assert view.clients_carried > 2
    by_clients = {point.num_clients: point.within_budget for point in view.curve}
    broken = min(n for n, share in by_clients.items() if share < 0.95)
    assert by_clients[view.clients_carried] >= 0.95
    assert view.clients_carried < broken <= view.clients_carried * 1.04 + 1
    names = [change.name for change in view.changes]
    assert names[0] == "as planned"
    assert {"split 5", "split 15", "drafting ngram", "one more server"} <= set(names)


def test_a_hopeless_budget_carries_nobody() -> None:
    inputs = budgeted(1e-6)
    base = measure(inputs.scenario, [run(inputs.scenario)])
    view = budget_view(inputs, base, processes=1)
    assert (view.kept, view.clients_carried, view.breaks_at) == (False, 0, 0.05)
    assert not any(change.kept for change in view.changes)


def test_without_limits_every_token_that_comes_is_in_time() -> None:
    inputs = budgeted(1.0)
    unlimited = replace(inputs.scenario, budget=Budget())
    assert measure(unlimited, [run(unlimited)]).within_budget == 1.0


def test_many_tokens_in_time_do_not_hide_late_first_tokens() -> None:
    inputs = budgeted(1.0)
    firsts = ttft_s([run(inputs.scenario)])
    late = replace(inputs.scenario, budget=Budget(ttft_s=float(np.median(firsts)), tbt_s=1.0))
    found = measure(late, [run(late)])
    assert found.further_in_time == 1.0
    assert 0.3 < found.first_in_time < 0.7
    assert found.within_budget == found.first_in_time
    assert not budget_view(Inputs(scenario=late, plan=PLAN), found, processes=1).kept


def test_a_request_that_never_finished_is_late() -> None:
    inputs = budgeted(1.0)
    record = run(inputs.scenario)
    row = record.requests[0]
    record.requests[0] = row._replace(outcome="server_lost")
    found = measure(inputs.scenario, [record])
    assert found.first_in_time == 1.0
    assert 0.9 < found.further_in_time < 1.0

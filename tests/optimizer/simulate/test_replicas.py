"""Replicas behind a door: which one a stream gets, how their number follows the load, a loss."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimizer.errors import ScenarioError
from optimizer.policy.replicas import ScalingDelays
from optimizer.policy.retry import RetryPolicy
from optimizer.simulate.assemble import Inputs
from optimizer.simulate.fleet import fleet_size
from optimizer.simulate.measures import measure
from optimizer.simulate.record import Record, ReplicaCount
from optimizer.simulate.scenario import (
    Arrivals,
    Budget,
    Fault,
    Lengths,
    Link,
    MeasuredSteps,
    Scaling,
    Scenario,
    Servers,
    StepPoint,
)
from tests.optimizer.simulate.scenes import PLAN, run, same, scene

STEP_S = 0.05
# Every batch takes STEP_S, whatever is in it.
STEPS = MeasuredSteps(
    points=(
        StepPoint(rows=1, sessions=1, seconds=STEP_S),
        StepPoint(rows=512, sessions=1, seconds=STEP_S),
        StepPoint(rows=64, sessions=64, seconds=STEP_S),
    ),
    context_tokens=0,
    attention_s_per_token=0.0,
)
START_S = 7.0


def servers(**changes: Any) -> Servers:
    return replace(Servers(device="local-epyc-2core", measured=STEPS), **changes)


def asked_at(folder: Path, *rows: str, **changes: Any) -> Scenario:
    """One client a row of `t_s,prompt_tokens,output_tokens`, on a fast link."""
    trace = folder / "load.csv"
    trace.write_text("\n".join(("t_s,prompt_tokens,output_tokens", *rows, "")), encoding="utf-8")
    group = {
        "count": len(rows),
        "arrivals": Arrivals(kind="trace", trace=str(trace)),
        "link": Link(mix={"lan": 1.0}, quantile=0.5),
        "same_beginning": changes.pop("same_beginning", "client"),
    }
    return scene(group=group, **changes)


def all_tokens_came_once(record: Record, asked: int) -> bool:
    tokens = sum(row.tokens for row in record.requests)
    done = {row.outcome for row in record.requests} == {"done"}
    return done and tokens == asked == record.firsts + len(record.gaps_s)


def test_one_full_server_gets_a_second_after_five_seconds_and_the_start(tmp_path: Path) -> None:
    scaled = servers(max_sessions=2, scaling=Scaling(most=4, start_delay_s=START_S))
    record = run(asked_at(tmp_path, "0,40,300", "0,40,300", servers=scaled, duration_s=120.0))
    # The first look comes after a second. Two sessions of two fill 1 / 0.7 servers.
    begun = [ReplicaCount(0.0, 1, 1), ReplicaCount(6.0, 1, 2), ReplicaCount(6.0 + START_S, 2, 2)]
    assert record.replicas[:3] == begun
    # The mean of five looks wants one again at the second look after the last answer.
    ends_s = [row.asked_s + row.e2e_s for row in record.requests]
    [ended_s] = {int(end_s) for end_s in ends_s}
    close_s = ended_s + 2 + 60.0
    assert record.replicas[3:] == [ReplicaCount(close_s, 1, 1)]
    found = measure(scene(servers=scaled, duration_s=120.0), [record])
    assert found.server_hours == pytest.approx((120.0 + close_s - 6.0) / 3600)
    assert (found.serving_least, found.serving_most, found.servers) == (1, 2, 2)
    mean = 1 + (close_s - 6.0 - START_S) / 120.0
    assert found.serving_mean == pytest.approx(mean)
    assert all_tokens_came_once(record, 600)


def test_what_a_fleet_costs_is_the_time_that_its_servers_are_there(tmp_path: Path) -> None:
    scaled = servers(max_sessions=2, cost_per_hour=36.0, scaling=Scaling(most=4, start_delay_s=1.0))
    scenario = asked_at(tmp_path, "0,40,300", "0,40,300", servers=scaled, duration_s=120.0)
    found = measure(scenario, [run(scenario)])
    assert found.cost == pytest.approx(36.0 * found.server_hours)
    fixed = replace(scenario, servers=replace(scaled, scaling=None))
    assert measure(fixed, [run(fixed)]).cost == pytest.approx(36.0 * 120.0 / 3600)


def test_a_server_that_ends_hands_its_sessions_back(tmp_path: Path) -> None:
    """Four short answers fill the first server. Three long ones come when there is a second."""
    rows = [f"{index / 10},40,200" for index in range(4)]
    rows += [f"{9 + index / 10},40,900" for index in range(3)]
    quick = ScalingDelays(down_s=10.0)
    scaling = Scaling(most=2, start_delay_s=1.0, drain_s=2.0, delays=quick, target=0.95)
    scaled = servers(max_sessions=8, scaling=scaling)
    crowded = replace(scaled, max_sessions=4, scaling=replace(scaling, drain_s=500.0))
    for given in (scaled, crowded):
        scenario = asked_at(tmp_path, *rows, servers=given, duration_s=200.0)
        record = run(scenario)
        assert all_tokens_came_once(record, 4 * 200 + 3 * 900)
    # Eight places: seven sessions never want a second server.
    assert run(asked_at(tmp_path, *rows, servers=scaled, duration_s=200.0)).reconnects == 0
    # Four places: the second server comes, and drains when the short answers have ended.
    brief = replace(crowded, scaling=scaling)
    handed = run(asked_at(tmp_path, *rows, servers=brief, duration_s=200.0))
    ends = [one for one in handed.replicas if one.serving == 1 and one.at_s > 10.0]
    assert [one.paid for one in ends] == [2, 1]
    assert ends[1].at_s - ends[0].at_s == pytest.approx(2.0)
    assert handed.reconnects > 0
    assert all_tokens_came_once(handed, 4 * 200 + 3 * 900)
    assert record.reconnects == 0  # with time to drain, nobody goes elsewhere


def test_a_lost_replica_costs_the_replay_of_every_frame(tmp_path: Path) -> None:
    lost_s = 5.0
    lost = tuple(
        Fault(kind="server_loss", at_s=lost_s, duration_s=60.0, server=number)
        for number in range(2)
    )
    for fault in lost:
        scenario = asked_at(
            tmp_path, "0,40,200", servers=servers(count=2), faults=(fault,), duration_s=60.0
        )
        record = run(scenario)
        assert all_tokens_came_once(record, 200)
        if record.reconnects:
            break
    [row] = record.requests
    at = max(range(len(record.gaps_s)), key=lambda index: record.gaps_s[index])
    last_s = row.asked_s + row.ttft_s + sum(record.gaps_s[:at])
    assert last_s < lost_s < last_s + record.gaps_s[at]
    # One chunk of the prompt, and a step for every token that had come: a batch each.
    frames = 1 + (at + 1)
    expected_s = (lost_s - last_s) + frames * STEP_S
    # The rest is the network, where 4 frames in a row pass in less than 30 ms.
    assert expected_s < record.gaps_s[at] < expected_s + 0.03 + frames * 0.003
    assert record.gaps_s[at] > frames * STEP_S > 3.0


def test_another_server_starts_for_a_lost_one(tmp_path: Path) -> None:
    rows = [f"{index / 10},40,200" for index in range(8)]
    fault = Fault(kind="server_loss", at_s=4.0, server=1)
    scaling = Scaling(most=2, start_delay_s=START_S)
    scenario = asked_at(
        tmp_path,
        *rows,
        servers=servers(count=2, scaling=scaling),
        faults=(fault,),
        duration_s=60.0,
    )
    record = run(scenario)
    assert record.replicas == [
        ReplicaCount(0.0, 2, 2),
        ReplicaCount(4.0, 1, 2),
        ReplicaCount(4.0 + START_S, 2, 2),
    ]
    assert record.reconnects > 0
    assert all_tokens_came_once(record, 8 * 200)
    assert {row.server for row in record.requests} == {0}
    assert sum(server.paid_s for server in record.servers) == pytest.approx(2 * 60.0)


def test_a_lost_one_among_many_is_one_part_of_the_sessions(tmp_path: Path) -> None:
    rows = [f"{index / 100},40,200" for index in range(64)]
    fault = Fault(kind="server_loss", at_s=4.0, duration_s=60.0, server=3)
    many = servers(count=8)
    calm = run(asked_at(tmp_path, *rows, servers=many, duration_s=60.0))
    on_it = Counter(row.server for row in calm.requests)[3]
    record = run(asked_at(tmp_path, *rows, servers=many, faults=(fault,), duration_s=60.0))
    assert 0 < on_it == record.reconnects
    assert 3 not in {row.server for row in record.requests}
    assert all_tokens_came_once(record, 64 * 200)


def test_answers_of_one_client_meet_where_their_prompts_begin_alike(tmp_path: Path) -> None:
    rows = [f"{index},40,10" for index in range(40)]
    many = servers(count=4)

    def used(same_beginning: str) -> Counter[int]:
        scenario = asked_at(
            tmp_path, *rows, servers=many, duration_s=60.0, same_beginning=same_beginning
        )
        return Counter(row.server for row in run(scenario).requests)

    assert len(used("group")) == 1  # one answer at a time fills nothing
    assert len(used("client")) == len(used("none")) == 4


def test_a_full_server_names_one_with_room(tmp_path: Path) -> None:
    """Two places a server, no queue, and all prompts begin alike."""
    rows = [f"{index / 100},40,100" for index in range(6)]
    tight = servers(count=3, max_sessions=2, waiting=0)
    scenario = asked_at(tmp_path, *rows, servers=tight, duration_s=60.0, same_beginning="group")
    record = run(scenario)
    assert Counter(row.server for row in record.requests) == {0: 2, 1: 2, 2: 2}
    assert all_tokens_came_once(record, 600)


def test_the_same_seed_gives_the_same_fleet(tmp_path: Path) -> None:
    rows = [f"{index / 5},40,{60 + index % 7 * 20}" for index in range(60)]
    scaled = servers(max_sessions=6, scaling=Scaling(most=5, start_delay_s=2.0))
    fault = Fault(kind="server_loss", at_s=10.0, server=0)
    scenario = asked_at(
        tmp_path,
        *rows,
        servers=scaled,
        faults=(fault,),
        duration_s=40.0,
        patience=RetryPolicy(connect_s=60.0),
    )
    first, second = run(scenario), run(scenario)
    assert same(first, second)
    assert first.replicas == second.replicas
    assert len(first.replicas) > 3
    assert all_tokens_came_once(first, sum(60 + index % 7 * 20 for index in range(60)))


def test_a_number_that_scales_fits_or_is_refused() -> None:
    scaling = Scaling(most=2, start_delay_s=1.0)
    with pytest.raises(ScenarioError, match="most is below count"):
        servers(count=3, scaling=scaling)
    with pytest.raises(ScenarioError, match="only behind a door"):
        servers(scaling=scaling, door=False)
    with pytest.raises(ScenarioError, match=r"target lies above 0"):
        replace(scaling, target=1.5)
    with pytest.raises(ScenarioError, match="every_s must be above zero"):
        replace(scaling, delays=ScalingDelays(every_s=0.0))
    loss = Fault(kind="server_loss", at_s=1.0)
    with pytest.raises(ScenarioError, match="needs duration_s"):
        scene(faults=(loss,))
    with pytest.raises(ScenarioError, match="leave out duration_s"):
        scene(servers=servers(scaling=scaling), faults=(replace(loss, duration_s=1.0),))
    with pytest.raises(ScenarioError, match="lost twice"):
        scene(servers=servers(scaling=scaling), faults=(loss, replace(loss, at_s=2.0)))
    scaled = scene(servers=servers(scaling=scaling), budget=Budget(tbt_s=1.0))
    with pytest.raises(ScenarioError, match="scales by itself"):
        fleet_size(Inputs(scenario=scaled, plan=PLAN), processes=1)


def test_lengths_are_those_of_the_rows(tmp_path: Path) -> None:
    """The rows of the traces here replace the group's lengths."""
    record = run(asked_at(tmp_path, "0,40,7", servers=servers(), duration_s=10.0))
    assert [row.tokens for row in record.requests] == [7] != [Lengths(median=20).median]

"""What happens to clients and servers, event by event; and that it happens the same way again."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from optimizer.cost.request import predict_request, round_parts
from optimizer.policy.retry import RetryPolicy
from optimizer.simulate.measures import measure
from optimizer.simulate.record import RECOVER
from optimizer.simulate.replicate import replicate
from optimizer.simulate.scenario import (
    Arrivals,
    DraftingScenario,
    DraftOutcome,
    Fault,
    Lengths,
    Link,
    Servers,
)
from optimizer.simulate.workload import client_specs
from tests.optimizer.simulate.scenes import GROUP, PLAN, run, same, scene, setup_of
from tests.optimizer.simulate.test_analytic import deployment

BUSY_GROUP = {
    "count": 8,
    "link": Link(mix={"4g": 1.0, "wifi": 1.0}),
    "devices": {"raspberry-pi-5-8gb": 1.0, "raspberry-pi-4-4gb": 1.0},
    "arrivals": Arrivals(kind="poisson", rate_per_s=0.05),
    "prompt_tokens": Lengths(median=80, p95=300),
    "output_tokens": Lengths(median=20, p95=60),
}


def test_the_same_seed_tells_the_same_story_and_another_another() -> None:
    scenario = scene(group=BUSY_GROUP, duration_s=60.0)
    first, second = run(scenario), run(scenario)
    assert same(first, second)
    assert run(replace(scenario, seed=1)).gaps_s != first.gaps_s


def test_replications_do_not_depend_on_the_number_of_processes() -> None:
    setups = [setup_of(scene(group=BUSY_GROUP, duration_s=20.0))]
    alone = replicate(setups, replications=2, processes=1)
    apart = replicate(setups, replications=2, processes=2)
    assert all(same(a, b) for a, b in zip(alone[0], apart[0], strict=True))
    assert alone[0][0].gaps_s != alone[0][1].gaps_s


def test_a_clients_draws_do_not_depend_on_how_many_others_there_are() -> None:
    few = list(client_specs(scene(group=BUSY_GROUP), longest=1024))
    many = list(client_specs(scene(group={**BUSY_GROUP, "count": 20}), longest=1024))
    assert many[:8] == few


def test_every_request_ends_and_gives_everything_back() -> None:
    record = run(scene(group=BUSY_GROUP, duration_s=120.0))
    assert Counter(row.outcome for row in record.requests) == {"done": len(record.requests)}
    specs = list(client_specs(scene(group=BUSY_GROUP, duration_s=120.0), longest=1024))
    asked = sorted(r.at_s for spec in specs for r in spec.requests)
    assert sorted(row.asked_s for row in record.requests) == asked
    tokens = sum(row.tokens for row in record.requests)
    assert tokens == sum(r.output_tokens for spec in specs for r in spec.requests)
    assert tokens == record.firsts + len(record.gaps_s)


def test_sessions_beyond_the_limit_are_refused_and_come_again() -> None:
    group = {**BUSY_GROUP, "count": 2, "arrivals": Arrivals(kind="closed", think_s=0.0)}
    full = scene(
        group=group,
        servers=Servers(device="local-epyc-2core", max_sessions=1, waiting=0),
        patience=RetryPolicy(connect_s=2.0),
    )
    record = run(full)
    outcomes = Counter(row.outcome for row in record.requests)
    assert outcomes["busy"] > 0
    assert outcomes["done"] > 0
    assert record.servers[0].peak_sessions == 1
    patient = run(replace(full, servers=replace(full.servers, waiting=4, max_wait_s=60.0)))
    assert Counter(row.outcome for row in patient.requests)["busy"] == 0
    # Nobody waits in the queue for longer than the server allows: one of two is refused.
    brief = run(replace(full, servers=replace(full.servers, waiting=4, max_wait_s=0.5)))
    assert brief.servers[0].refused > 0
    waited = [row.ttft_s for row in brief.requests if row.outcome == "done"]
    assert max(waited) < max(row.ttft_s for row in patient.requests)


def test_kv_memory_bounds_what_is_admitted() -> None:
    geometry = PLAN.model.geometry
    block = geometry.kv_bytes(num_layers=20, num_tokens=16, kv_bits=32)
    group = {
        **BUSY_GROUP,
        "prompt_tokens": Lengths(median=150),
        "output_tokens": Lengths(median=10),
    }
    tight = scene(
        group=group,
        servers=Servers(device="local-epyc-2core", kv_memory_bytes=25 * block, waiting=9),
        duration_s=60.0,
    )
    record = run(tight)
    assert record.servers[0].total_blocks == 25
    assert record.servers[0].kv_peak_blocks == 20  # two sessions of 160 tokens
    assert {row.outcome for row in record.requests} == {"done"}
    too_small = replace(tight, servers=replace(tight.servers, kv_memory_bytes=9 * block))
    assert {row.outcome for row in run(too_small).requests} == {"refused"}


def test_a_lost_server_costs_time_and_no_tokens() -> None:
    group = {**BUSY_GROUP, "arrivals": Arrivals(kind="closed", think_s=0.5)}
    calm = scene(group=group, duration_s=30.0)
    faulty = replace(calm, faults=(Fault(kind="server_loss", at_s=10.0, duration_s=3.0),))
    record = run(faulty)
    assert record.reconnects > 0
    assert {row.outcome for row in record.requests} == {"done"}
    assert record.step_parts_s[RECOVER] > 0
    assert max(record.gaps_s) > 3.0 > max(run(calm).gaps_s)
    tokens = sum(row.tokens for row in record.requests)
    assert tokens == record.firsts + len(record.gaps_s)


def test_a_server_that_dies_before_every_token_is_given_up_in_the_time_to_recover() -> None:
    """Sessions that bring nothing new neither restart the time nor are opened without a wait."""
    group = {"prompt_tokens": Lengths(median=900), "link": Link(mix={"3g": 1.0})}
    deaths = tuple(
        Fault(kind="server_loss", at_s=0.5 + 0.4 * index, duration_s=0.02) for index in range(100)
    )
    crashing = scene(group=group, faults=deaths, patience=RetryPolicy(recover_s=3.0))
    record = run(crashing)
    assert {row.outcome for row in record.requests} <= {"server_lost", "unfinished"}
    answers = sum(row.outcome == "server_lost" for row in record.requests)
    assert answers >= 2
    assert record.reconnects <= 8 * len(record.requests)


def test_clients_go_to_another_server_when_theirs_is_lost() -> None:
    group = {**BUSY_GROUP, "arrivals": Arrivals(kind="closed", think_s=0.5)}
    record = run(
        scene(
            group=group,
            duration_s=30.0,
            servers=Servers(device="local-epyc-2core", count=2),
            faults=(Fault(kind="server_loss", at_s=5.0, duration_s=100.0, server=1),),
        )
    )
    assert record.reconnects > 0
    late = [row for row in record.requests if row.asked_s > 6.0]
    assert {row.server for row in late} == {0}
    assert {row.outcome for row in late} == {"done"}


def test_a_link_outage_holds_everything_back_until_it_ends() -> None:
    group = {"arrivals": Arrivals(kind="closed", think_s=0.0), "link": GROUP.link}
    outage = Fault(kind="link_outage", at_s=5.0, duration_s=4.0, target="clients")
    record = run(scene(group=group, faults=(outage,)))
    assert 4.0 < max(record.gaps_s) < 4.5
    assert sum(1 for gap in record.gaps_s if gap > 1.0) == 1


def test_the_controller_compresses_harder_on_a_slow_link_and_stops_when_nothing_helps() -> None:
    slow = {"link": Link(mix={"3g": 1.0}, quantile=0.9), "output_tokens": Lengths(median=200)}
    held = scene(group=slow, duration_s=60.0, deadline_tbt_s=0.15)
    tight = replace(held, deadline_tbt_s=0.001)
    assert {row.outcome for row in run(tight).requests} == {"stopped"}
    assert {row.outcome for row in run(replace(held, deadline_tbt_s=10.0)).requests} == {"done"}


def test_drafting_can_only_be_as_long_as_it_pays() -> None:
    plan = replace(PLAN, drafting="ngram")
    hopeless = scene(drafting=DraftingScenario(acceptance=0.01, length=8), duration_s=30.0)
    assert run(hopeless, plan).drafted == 0
    hopeful = replace(hopeless, drafting=DraftingScenario(acceptance=0.95, length=8))
    record = run(hopeful, plan)
    assert record.drafted > 0
    assert measure(hopeful, [record]).tokens_per_round_trip > 2


def test_measured_draft_rounds_are_drawn_as_they_are() -> None:
    plan = replace(PLAN, drafting="ngram")
    rounds = (DraftOutcome(drafts=5, accepted=3), DraftOutcome(drafts=0, accepted=0))
    record = run(scene(drafting=DraftingScenario(outcomes=rounds), duration_s=60.0), plan)
    steps = record.steps
    assert 0.4 * steps < record.accepted / 3 < 0.6 * steps
    assert record.drafted == pytest.approx(record.accepted * 5 / 3, rel=0.1)  # answers end within


def test_two_equal_clients_share_a_batch() -> None:
    group = {"count": 2, "arrivals": Arrivals(kind="closed", think_s=1.0, fixed_think=True)}
    record = run(scene(group=group))
    assert record.servers[0].batch_sessions == 2 * record.servers[0].batches


def test_with_the_whole_model_on_the_edge_nobody_waits_for_anybody() -> None:
    whole = replace(PLAN, partition=replace(PLAN.partition, split=30), back_start=30)
    record = run(scene(group={"count": 3}), whole)
    assert (record.servers, record.up_bytes) == ([], 0)
    local = replace(deployment(), partition=whole.partition)
    expected = predict_request(local, prompt_tokens=150, new_tokens=20)
    for row in record.requests:
        assert row.ttft_s == pytest.approx(expected.ttft_s, abs=1e-9)
        assert (row.server, row.outcome) == (-1, "done")
    rounds = [round_parts(local, position=150 + step).total_s for step in range(19)]
    assert list(record.gaps_s[:19]) == pytest.approx(rounds, abs=1e-9)
    assert measure(scene(), [record]).server_utilisation == 0.0

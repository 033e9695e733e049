"""What a simulated token's work costs: servers' busy seconds and devices' computing, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hwprofiles.profiles.catalog import load_device
from optimizer.cost.edge import front_prefill, front_step
from optimizer.cost.money import NO_PRICES, Prices
from optimizer.errors import ScenarioError
from optimizer.simulate.error_ranges import latency_ranges
from optimizer.simulate.measures import measure
from optimizer.simulate.scenario import Scenario, load_scenario
from optimizer.simulate.simulation import simulate
from tests.optimizer.hot_devices import hot
from tests.optimizer.simulate.scenes import GROUP, LEVEL, PLAN, SCENE, run, scene, setup_of

EDGE = load_device("raspberry-pi-5-8gb")  # 25 W
GEOMETRY = PLAN.model.geometry
PRICED = scene(prices=Prices(cloud_per_hour=3.6, energy_per_kwh=0.36))
IN_CLOUD = replace(PLAN, back_start=0, prefill="cloud")


def computing_s(num_requests: int, *, sends_rows: bool, slowdown: float = 1.0) -> float:
    """Front and encoder of so many requests of 150 and 20 tokens, written out. slowdown: of the
    steps."""
    prompt_s = front_prefill(
        EDGE, GEOMETRY, split=10, weight_bits=4, kv_bits=8, num_tokens=150, chunk=64
    ).sum()
    steps_s = sum(
        front_step(
            EDGE, GEOMETRY, split=10, weight_bits=4, kv_bits=8, num_rows=1, position=150 + step
        ).total_s
        for step in range(19)
    )
    frames, rows = (19 + 3, 19 + 150) if sends_rows else (19, 19)
    coding_s = frames * LEVEL.encode_fixed_s
    coding_s += rows * GEOMETRY.hidden_size * LEVEL.encode_s_per_element
    return float(num_requests * (prompt_s + slowdown * steps_s + coding_s))


@pytest.mark.parametrize("in_cloud", [False, True])
def test_the_cost_by_hand(in_cloud: bool) -> None:
    record = run(PRICED, IN_CLOUD if in_cloud else PLAN)
    found = measure(PRICED, [record])
    joules = 25.0 * computing_s(len(record.requests), sends_rows=not in_cloud)
    assert record.edge_joules == pytest.approx(joules, rel=1e-9)
    money = record.servers[0].busy_s * 3.6 / 3600 + joules * 0.36 / 3.6e6
    assert found.work_cost_per_million_tokens == pytest.approx(1e6 * money / found.tokens)
    assert "cost of the work a million tokens" in dict(found.for_people())


def test_a_hot_device_takes_longer_over_its_steps_and_its_own_watts_count() -> None:
    setup = setup_of(PRICED)
    (name,) = GROUP.devices
    warm = hot(setup.devices[name], share=0.5, watts=6.0)
    record = simulate(replace(setup, devices={**setup.devices, name: warm}))
    seconds = computing_s(len(record.requests), sends_rows=True, slowdown=2.0)
    assert record.edge_joules == pytest.approx(6.0 * seconds, rel=1e-9)


def test_sensors_measure_devices_from_question_to_last_token() -> None:
    setup = setup_of(PRICED)
    (name,) = GROUP.devices
    warm = hot(setup.devices[name], share=0.5, watts=6.0, idle=2.5)
    metered = replace(setup, devices={**setup.devices, name: warm})
    record = simulate(metered)
    found = measure(PRICED, [record])
    busy_s = computing_s(len(record.requests), sends_rows=True, slowdown=2.0)
    seconds = sum(row.e2e_s for row in record.requests)
    joules = 6.0 * busy_s + 2.5 * (seconds - busy_s)
    assert record.sensor_joules == pytest.approx(joules, rel=1e-9)
    assert found.joules_per_token == pytest.approx(joules / found.tokens)
    ranges = latency_ranges(metered, found, [record])
    assert ranges.joules_per_token is not None
    assert ranges.work_cost is not None
    for item, value in (
        (ranges.joules_per_token, found.joules_per_token),
        (ranges.work_cost, found.work_cost_per_million_tokens),
    ):
        assert item.p10 < item.p50 < item.p90
        assert item.p50 == pytest.approx(value)
    assert ranges.energy_rows(found.no_sensor)[0][1].startswith(f"{found.joules_per_token:.3g} J")


def test_without_a_sensor_a_simulation_says_so() -> None:
    record = run(PRICED)
    found = measure(PRICED, [record])
    ranges = latency_ranges(setup_of(PRICED), found, [record])
    assert (found.joules_per_token, ranges.joules_per_token) == (None, None)
    assert found.no_sensor == tuple(GROUP.devices)
    assert ranges.energy_rows(found.no_sensor)[0] == ("devices' energy a token", "no sensor")


def test_a_device_with_the_whole_model_costs_its_energy() -> None:
    whole = replace(
        PLAN, partition=replace(PLAN.partition, split=GEOMETRY.num_layers), back_start=0
    )
    record = run(PRICED, whole)
    ended_s = sum(row.e2e_s for row in record.requests)
    assert record.edge_joules == pytest.approx(25.0 * ended_s, rel=1e-9)  # it only computes


def test_without_prices_nothing_is_said() -> None:
    found = measure(SCENE, [run(SCENE)])
    assert found.work_cost_per_million_tokens is None
    assert not {"work_cost_per_million_tokens", "energy_left_out"} & set(found.to_json())
    assert not any("work" in label for label, _ in found.for_people())


def test_a_device_without_watts_is_named() -> None:
    setup = setup_of(PRICED)
    (name,) = GROUP.devices
    unknown = replace(
        setup, devices={**setup.devices, name: replace(setup.devices[name], power=None)}
    )
    found = measure(PRICED, [simulate(unknown)])
    assert found.energy_left_out == (name,)
    assert any(f"without the energy of {name}" in label for label, _ in found.for_people())


def test_prices_are_read_and_checked(tmp_path: Path) -> None:
    text = """
name: priced
clients:
  - name: c
    count: 1
    devices: {raspberry-pi-5-8gb: 1}
    link: {mix: {4g: 1}}
    arrivals: {kind: closed, think_s: 1}
    prompt_tokens: {median: 10}
    output_tokens: {median: 10}
servers: {device: l4-24gb}
"""
    path = tmp_path / "scenario.yaml"
    path.write_text(text)
    plain: Scenario = load_scenario(path)
    assert plain.prices == NO_PRICES
    path.write_text(text + "prices: {cloud_per_hour: 1.5}\n")
    assert load_scenario(path).prices == Prices(cloud_per_hour=1.5)
    path.write_text(text + "prices: {cloud_per_hour: -1}\n")
    with pytest.raises(ScenarioError, match="cloud_per_hour"):
        load_scenario(path)

"""Energy and cost of measured answers: compared, refined, and left out where nobody knows them."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from optimizer.cost.energy import joules, measured_watts
from optimizer.cost.money import Prices
from optimizer.measured.energy_figures import (
    COST,
    ENERGY,
    LASTING,
    energy_note,
    measured_energy_figures,
)
from optimizer.measured.log import MeasurementLog, read_measurements
from optimizer.measured.predict import compare_generations, predicted_figures
from optimizer.measured.record import Measured, MeasuredGeneration, MeasuredJoules
from optimizer.measured.refine import refine_profile
from tests.optimizer.hot_devices import SENSOR, hot
from tests.optimizer.measured import hours

TRUE = hot(hours.EDGE, share=1.0, watts=30.0, idle=12.0)
PRICES = Prices(cloud_per_hour=2.0, energy_per_kwh=0.3)


def metered(count: int, *, sensor: str = SENSOR, wild: bool = True) -> list[MeasuredGeneration]:
    """An hour of answers, each with what the sensor of the true device measured."""
    noise, found = hours.Noise(3), []
    watts = measured_watts(TRUE)
    assert watts is not None
    for item in hours.generations(count):
        busy_s = sum((step.front_s + step.encode_s) * step.num_steps for step in item.steps)
        seconds = item.ttft_s + (item.num_tokens - 1) * (item.tbt_s or 0.0) + busy_s
        used = float(joules(watts, seconds=seconds, busy_s=busy_s))
        energy = MeasuredJoules(
            joules=noise.of(used) if wild else used,
            seconds=seconds,
            busy_s=busy_s,
            sensor=sensor,
        )
        found.append(replace(item, energy=energy))
    return found


def test_watts_that_were_wrong_come_back() -> None:
    wrong = hot(hours.EDGE, share=1.0, watts=20.0, idle=18.0)
    log: list[Measured] = [*metered(80)]
    found = refine_profile(wrong, log, name="new", command="refine")
    watts = measured_watts(found.profile)
    assert watts is not None
    assert watts.working == pytest.approx(30.0, rel=0.1)
    assert watts.waiting == pytest.approx(12.0, rel=0.1)
    assert found.profile.errors is not None
    assert found.profile.errors.power is not None
    assert {"watts, computing", "watts, waiting"} <= {item.factor for item in found.factors}


def test_watts_of_another_sensor_change_nothing() -> None:
    log: list[Measured] = [*metered(30, sensor="rapl package-0 (processor)")]
    found = refine_profile(TRUE, log, name="new", command="refine")
    assert measured_watts(found.profile) == measured_watts(TRUE)
    (item,) = [item for item in found.factors if item.factor == "watts"]
    assert (item.observations, item.ratio) == (0, None)
    plain = refine_profile(hours.EDGE, log, name="new", command="refine")
    assert not [item for item in plain.factors if item.factor.startswith("watts")]


def test_energy_and_cost_are_compared_where_the_sensor_is_the_same() -> None:
    basis = replace(hours.basis(TRUE, hours.CLOUD_MACHINE), prices=PRICES)
    items = metered(6)
    items = [
        replace(item, steps=tuple(replace(step, server_s=0.02) for step in item.steps))
        for item in items
    ]
    predictions = [predicted_figures(item, basis) for item in items]
    rows = {row.figure: row for row in compare_generations(items, predictions, prices=basis.prices)}
    assert {ENERGY, COST} <= set(rows)
    assert rows[ENERGY].unit == "J"
    assert rows[ENERGY].p50 == pytest.approx(statistics.median(_joules(items)))
    assert rows[ENERGY].predicted_p10 is not None
    assert LASTING not in rows  # none of them took so long
    for item in items:
        steps_s = sum(0.02 * step.num_steps for step in item.steps)
        money = steps_s * 2.0 / 3600 + _joules([item])[0] * 0.3 / 3.6e6
        assert measured_energy_figures(item, PRICES)[COST] == pytest.approx(money)
    other = metered(1, sensor="battery BAT0 (battery)")[0]
    assert not {ENERGY, COST} & set(predicted_figures(other, basis))
    without = predicted_figures(items[0], replace(basis, edge=hours.EDGE))
    assert not {ENERGY, COST, LASTING} & set(without)


def _joules(items: list[MeasuredGeneration]) -> list[float]:
    return [item.energy.joules for item in items if item.energy is not None]


def test_the_rate_that_lasts_is_compared_for_answers_that_lasted() -> None:
    basis = hours.basis(TRUE, hours.CLOUD_MACHINE)
    item = replace(metered(1)[0], further_s=61.0)
    assert LASTING in predicted_figures(item, basis)
    assert measured_energy_figures(item)[LASTING] == (item.num_tokens - 1) / 61.0
    assert LASTING not in predicted_figures(replace(item, further_s=59.0), basis)
    assert LASTING not in predicted_figures(item, hours.basis(hours.EDGE, hours.CLOUD_MACHINE))


def test_it_is_said_why_there_is_no_energy() -> None:
    (item,) = metered(1)
    assert energy_note(item, device=TRUE, plan=item.plan) == ""
    assert "no sensor in the device's profile" in energy_note(
        item, device=hours.EDGE, plan=item.plan
    )
    assert "no sensor on the device" in energy_note(
        replace(item, energy=None), device=TRUE, plan=item.plan
    )
    (other,) = metered(1, sensor="battery BAT0 (battery)")
    assert "measured by battery BAT0" in energy_note(other, device=TRUE, plan=item.plan)


def test_a_record_keeps_its_energy_and_an_older_one_has_none(tmp_path: Path) -> None:
    log = MeasurementLog(tmp_path / "log")
    (new,) = metered(1)
    (old,) = hours.generations(1)
    log.append(new)
    log.append(old)
    text = (tmp_path / "log").read_text()
    assert read_measurements(tmp_path / "log") == [new, old]
    assert text.count("energy") == 1
    assert "server_s" not in text
    with pytest.raises(ValueError, match="joules"):
        MeasuredJoules(joules=-1.0, seconds=1.0, busy_s=0.5, sensor="x")

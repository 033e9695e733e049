"""Adding readings up: trapezoids, gaps, and a meter on a fake clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hwprofiles.sensors.energy import (
    CounterTally,
    CounterZone,
    EnergyMeter,
    EnergySensor,
    GaugeTally,
)


def gauge(readings: list[float | None]) -> Callable[[], float | None]:
    waiting = iter(readings)
    return lambda: next(waiting)


def test_a_gauges_energy_is_the_area_under_it() -> None:
    tally = GaugeTally(gauge([2.0, 4.0, 4.0]))
    for at_s in (0.0, 1.0, 3.0):
        tally.read(at_s)
    assert tally.joules() == pytest.approx(3.0 + 8.0)


@pytest.mark.parametrize("bad", [None, -3.0, 0.0, 1e9, float("nan"), float("inf")])
def test_a_reading_that_is_none_is_left_out(bad: float | None) -> None:
    tally = GaugeTally(gauge([2.0, bad, 4.0]))
    for at_s in (0.0, 1.0, 2.0):
        tally.read(at_s)
    assert tally.joules() == pytest.approx(6.0)


@pytest.mark.parametrize("readings", [[None, 2.0, 2.0], [2.0, 2.0, None]])
def test_a_gauge_that_fails_at_an_end_gives_no_energy(readings: list[float | None]) -> None:
    """A battery that is plugged in on the way, for instance."""
    tally = GaugeTally(gauge(readings))
    for at_s in (0.0, 1.0, 2.0):
        tally.read(at_s)
    assert tally.joules() is None


def test_a_counter_that_was_set_back_is_no_energy() -> None:
    """It looks like one that wrapped, as far as its numbers go; no package draws that much."""
    readings = iter([60_000.0, 100.0, 200.0])
    tally = CounterTally([CounterZone(lambda: next(readings), wraps_at=65_536.0)])
    for at_s in (0.0, 1.0, 2.0):
        tally.read(at_s)
    assert tally.joules() is None


def test_one_reading_is_no_energy() -> None:
    tally = GaugeTally(gauge([2.0, None]))
    assert tally.joules() is None
    tally.read(0.0)
    tally.read(1.0)
    assert tally.joules() is None


def sensor(watts: Callable[[], float | None]) -> EnergySensor:
    return EnergySensor(
        name="fake", covers="board", every_s=1000.0, tally=lambda: GaugeTally(watts)
    )


def test_a_meter_reads_at_both_ends_and_can_start_again() -> None:
    now = 0.0
    meter = EnergyMeter(sensor(lambda: 5.0), now=lambda: now)
    assert meter.stop() is None  # it was not started
    for length_s in (2.0, 4.0):
        meter.start()
        now += length_s
        found = meter.stop()
        assert found is not None
        assert found.joules == pytest.approx(5.0 * length_s)
        assert found.watts == pytest.approx(5.0)
        assert (found.sensor, found.covers) == ("fake", "board")


def test_a_meter_that_read_nothing_says_so() -> None:
    meter = EnergyMeter(sensor(lambda: None))
    meter.start()
    assert meter.stop() is None

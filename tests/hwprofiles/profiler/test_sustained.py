"""A sustained load on a fake clock: a machine that slows down, one that does not, its watts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from hwprofiles.profiler.sustained import (
    IDLE_S,
    MachineSigns,
    SustainedProbe,
    sustained_warnings,
)
from hwprofiles.profiles.device import Power
from hwprofiles.sensors.energy import EnergyMeter, EnergySensor, GaugeTally
from hwprofiles.sensors.heat import HeatReading

STEP_S = 0.01


@dataclass(slots=True)
class FakeMachine:
    """Takes STEP_S a step, and `slow` times as long once it has worked for `drop_s`."""

    slow: float = 1.0
    drop_s: float = 1e9
    watts: float = 2.0
    now_s: float = 0.0
    worked_s: float = 0.0

    def step(self) -> None:
        took_s = STEP_S * (self.slow if self.worked_s >= self.drop_s else 1.0)
        self.now_s += took_s
        self.worked_s += took_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def look(self) -> HeatReading:
        hot = self.worked_s >= self.drop_s
        return HeatReading(
            celsius=85.0 if hot else 45.0,
            sensor="cpu-thermal",
            clock_hz=1.0e9 if hot else 2.0e9,
            is_throttled=hot,
        )

    def meter(self) -> EnergyMeter:
        sensor = EnergySensor(
            name="fake", covers="board", every_s=1e6, tally=lambda: GaugeTally(self._watts)
        )
        return EnergyMeter(sensor, now=lambda: self.now_s)

    def _watts(self) -> float:
        return self.watts if self.worked_s else 0.5


def ran(machine: FakeMachine, *, seconds: float = 60.0, **changes: object) -> Power:
    signs = MachineSigns(
        clock=lambda: machine.now_s,
        sleep=machine.sleep,
        look=machine.look,
        throttle_events=lambda: 0,
        meter=machine.meter(),
    )
    probe = SustainedProbe(
        step=machine.step,
        seconds=seconds,
        signs=replace(signs, **changes),  # type: ignore[arg-type]
    )
    probe.rest()
    probe.burst(0.0)
    probe.burst(0.0)
    machine.worked_s = min(machine.worked_s, 0.2)
    shares: list[float] = []
    power = probe.run(lambda share, _what: shares.append(share))
    assert shares == sorted(shares)
    return power


def test_a_machine_that_slows_down_keeps_its_lasting_rate() -> None:
    power = ran(FakeMachine(slow=2.0, drop_s=20.0))
    load = power.sustained
    assert load is not None
    assert load.peak_steps_per_s == pytest.approx(100.0)
    assert load.sustained_steps_per_s == pytest.approx(50.0)
    assert load.share == pytest.approx(0.5)
    assert load.drop_after_s == pytest.approx(20.0, abs=1.5)
    assert (load.start_celsius, load.end_celsius) == (45.0, 85.0)
    assert (load.start_hz, load.end_hz) == (2.0e9, 1.0e9)
    assert load.is_throttled is True
    assert load.duration_s == pytest.approx(60.0, abs=1.5)
    (warning,) = sustained_warnings(power)
    assert warning.startswith("50% of the speed is left after ")
    assert "held the clock down" in warning


def test_a_machine_that_keeps_its_speed_has_no_drop() -> None:
    power = ran(FakeMachine())
    load = power.sustained
    assert load is not None
    assert (load.share, load.drop_after_s, load.is_throttled) == (1.0, None, False)
    assert list(sustained_warnings(power)) == []


def test_a_short_dip_is_no_drop() -> None:
    machine = FakeMachine(slow=3.0, drop_s=5.0)

    def step() -> None:
        machine.step()
        if machine.worked_s > 8.0:
            machine.drop_s = 1e9

    signs = MachineSigns(clock=lambda: machine.now_s, look=HeatReading, throttle_events=lambda: 0)
    probe = SustainedProbe(step=step, seconds=60.0, signs=signs)
    probe.burst(0.0)
    load = probe.run(lambda _share, _what: None).sustained
    assert load is not None
    assert (load.share, load.drop_after_s) == (1.0, None)


def test_a_machine_that_was_slow_in_its_bursts_counts_as_whole() -> None:
    machine = FakeMachine(slow=0.5, drop_s=1.0)
    load = ran(machine).sustained
    assert load is not None
    assert load.sustained_steps_per_s > load.peak_steps_per_s
    assert load.share == 1.0


def test_watts_are_those_of_the_rest_and_of_the_last_third() -> None:
    machine = FakeMachine(slow=2.0, drop_s=50.0, watts=7.5)
    power = ran(machine)
    assert power.idle_watts is not None
    assert power.load_watts is not None
    assert (power.idle_watts.value, power.load_watts.value) == (0.5, 7.5)
    assert power.sensor == "fake (board)"
    assert machine.now_s > IDLE_S + 60.0


def test_without_a_sensor_nothing_is_waited_for_and_no_watts_are_named() -> None:
    def never(_seconds: float) -> None:
        raise AssertionError("there is nothing to wait for")

    power = ran(FakeMachine(), meter=None, sleep=never, look=HeatReading)
    assert (power.idle_watts, power.load_watts, power.sensor) == (None, None, "")
    load = power.sustained
    assert load is not None
    shown = (load.start_celsius, load.end_hz, load.heat_sensor, load.is_throttled)
    assert shown == (None, None, "", None)


@pytest.mark.parametrize(("events", "expected"), [((5, 9), True), ((5, 5), False)])
def test_events_of_the_processor_count_as_throttling(
    events: tuple[int, int], expected: bool
) -> None:
    left = iter(events)
    load = ran(FakeMachine(), throttle_events=lambda: next(left)).sustained
    assert load is not None
    assert load.is_throttled is expected


def test_the_shortest_run_has_a_window() -> None:
    load = ran(FakeMachine(), seconds=0.001).sustained
    assert load is not None
    assert load.sustained_steps_per_s == pytest.approx(100.0)

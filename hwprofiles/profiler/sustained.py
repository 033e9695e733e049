"""Minutes of work without a pause: what speed lasts, with heat, clocks and watts. Ours.

The step is that of the thread sweep: one row through a few layers in the edge's kernels. It is
timed in short bursts between the passes, in which the profile's other rates are measured too, and
then run for minutes. The share that is left belongs to those rates. The run never waits; a device
that waits for a server between its steps warms up less.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from hwprofiles.profiler import system_facts
from hwprofiles.profiler.parts import Progress, digits, figure
from hwprofiles.profiler.timing import measure
from hwprofiles.profiles.device import Power
from hwprofiles.profiles.power import SustainedLoad
from hwprofiles.sensors.energy import EnergyMeter, MeasuredEnergy
from hwprofiles.sensors.heat import HeatReading, read_heat

IDLE_S: Final = 10.0
NUM_WINDOWS: Final = 60
WINDOW_S: Final = (0.5, 5.0)  # the shortest and the longest
DROP: Final = 0.10  # a fall by less is noise
STEADY_WINDOWS: Final = 3  # a fall lasts at least so long
LAST_SHARE: Final = 1 / 3  # of the run, in which the rate that lasts is taken


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSigns:
    """How to look at the machine; tests pass others. meter: None where no sensor can be read."""

    clock: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep
    look: Callable[[], HeatReading] = read_heat
    throttle_events: Callable[[], int] = system_facts.throttle_events
    meter: EnergyMeter | None = None


class LoadWindow(NamedTuple):
    """A window of the run: when it ended, its rate, and the machine then."""

    at_s: float
    steps_per_s: float
    heat: HeatReading


@dataclass(slots=True, kw_only=True)
class SustainedProbe:
    """See the module's docstring. step: one step of the work. seconds: of the run."""

    step: Callable[[], object]
    seconds: float
    signs: MachineSigns
    bursts: list[float] = field(default_factory=list)
    _idle: MeasuredEnergy | None = None

    def rest(self) -> None:
        """Measure the idle machine's watts, where they can be read: before anything works."""
        if self.signs.meter is not None:
            self.signs.meter.start()
            self.signs.sleep(IDLE_S)
            self._idle = self.signs.meter.stop()

    def burst(self, budget_s: float) -> None:
        """Time the step for a moment."""
        timing = measure(self.step, budget_s=budget_s, clock=self.signs.clock)
        self.bursts.append(timing.seconds)

    def run(self, progress: Progress) -> Power:
        """The whole run. There has been a burst before it."""
        signs = self.signs
        before, events = signs.look(), signs.throttle_events()
        windows, energy = self._windows(progress)
        first, last = windows[0].heat, windows[-1].heat
        peak = 1 / statistics.median(self.bursts)
        sustained = _lasting_rate(windows, self.seconds)
        flags = [item.heat.is_throttled for item in windows if item.heat.is_throttled is not None]
        throttled = any(flags) if flags else None
        sensor = "" if energy is None else energy.full_name
        return Power(
            idle_watts=None if self._idle is None else figure(self._idle.watts),
            load_watts=None if energy is None else figure(energy.watts),
            sensor=sensor,
            sustained=SustainedLoad(
                source="bench",
                duration_s=digits(windows[-1].at_s),
                peak_steps_per_s=digits(peak),
                sustained_steps_per_s=digits(sustained),
                drop_after_s=_drop_after_s(windows, peak, sustained),
                heat_sensor=last.sensor,
                start_celsius=before.celsius,
                end_celsius=last.celsius,
                start_hz=first.clock_hz,
                end_hz=last.clock_hz,
                is_throttled=True if signs.throttle_events() > events else throttled,
            ),
        )

    def _windows(self, progress: Progress) -> tuple[list[LoadWindow], MeasuredEnergy | None]:
        """Work until the time is over. The energy is that of the last third."""
        signs, meter = self.signs, self.signs.meter
        shortest, longest = WINDOW_S
        length_s = min(max(self.seconds / NUM_WINDOWS, shortest), longest)
        windows: list[LoadWindow] = []
        is_metered = False
        started_s = signs.clock()
        try:
            while (at_s := signs.clock() - started_s) < self.seconds or not windows:
                progress(min(at_s / self.seconds, 1.0), "work without a pause")
                if meter is not None and not is_metered and at_s >= self._late_s:
                    meter.start()
                    is_metered = True
                rate = self._rate(length_s)
                windows.append(LoadWindow(signs.clock() - started_s, rate, signs.look()))
        finally:
            energy = meter.stop() if meter is not None and is_metered else None
        progress(1.0, "done")
        return windows, energy

    @property
    def _late_s(self) -> float:
        return (1 - LAST_SHARE) * self.seconds

    def _rate(self, length_s: float) -> float:
        """Steps a second for so long: over the median, as the profile's other rates are."""
        clock, took = self.signs.clock, []
        began_s = at_s = clock()
        while at_s - began_s < length_s:
            self.step()
            before_s, at_s = at_s, clock()
            took.append(at_s - before_s)
        return 1 / statistics.median(took)


def sustained_warnings(power: Power) -> Iterator[str]:
    """Words for a person where the speed does not last."""
    load = power.sustained
    if load is None or load.share >= 1 - DROP:
        return
    when = "" if load.drop_after_s is None else f" after {load.drop_after_s:.0f} s"
    held = ", and the system held the clock down" if load.is_throttled else ""
    yield f"{load.share:.0%} of the speed is left{when} of work{held}: plans count with that"


def _lasting_rate(windows: Sequence[LoadWindow], seconds: float) -> float:
    late = [item.steps_per_s for item in windows if item.at_s > (1 - LAST_SHARE) * seconds]
    return statistics.median(late or [windows[-1].steps_per_s])


def _drop_after_s(windows: Sequence[LoadWindow], peak: float, sustained: float) -> float | None:
    """When the rate first was below the middle of both for some windows; None without a fall."""
    if sustained >= (1 - DROP) * peak:
        return None
    middle = (peak + sustained) / 2
    began_s = 0.0
    for index, window in enumerate(windows):
        following = windows[index : index + STEADY_WINDOWS]
        if all(item.steps_per_s < middle for item in following):
            return digits(began_s)
        began_s = window.at_s
    return digits(began_s)

"""Energy over a while, from a counter of joules or from a gauge of watts.

A counter is read at both ends, and in between so seldom that it cannot wrap twice. A gauge is read
at intervals, and the energy is the area under its readings (trapezoids). Ours.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias

# What a sensor measures. "board": the supply of the whole board. "processor": the processor's
# package alone. "battery": what the battery gives, the screen and everything else included.
Covers: TypeAlias = Literal["board", "processor", "battery"]

MOST_WATTS: Final = 5000.0  # of one machine; a reading above it is none
MOST_ZONE_WATTS: Final = 1000.0  # of one processor's package


class EnergyTally(Protocol):
    """Adds readings of one sensor up."""

    def read(self, now_s: float) -> None:
        """Take a reading at `now_s`, seconds of a steady clock."""
        ...

    def joules(self) -> float | None:
        """Joules between the first and the last reading; None where they cannot be known."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergySensor:
    """One sensor. name: for people, such as "rapl package-0". every_s: seconds between readings.
    tally: begins to add its readings up."""

    name: str
    covers: Covers
    every_s: float
    tally: Callable[[], EnergyTally]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredEnergy:
    """What a sensor measured in `seconds`. Other programs on the machine are in it too."""

    joules: float
    seconds: float
    sensor: str
    covers: Covers

    @property
    def watts(self) -> float:
        """Joules a second."""
        return self.joules / self.seconds

    @property
    def full_name(self) -> str:
        """The sensor with what it covers: figures of two such names do not compare."""
        return f"{self.sensor} ({self.covers})"


class CounterZone(NamedTuple):
    """One counter: its joules now (None: not readable), and the joules after which it wraps."""

    joules: Callable[[], float | None]
    wraps_at: float


class CounterTally:
    """The sum of counters that do not overlap. A reading that fails, or that no machine can have
    reached, makes the sum unknown."""

    def __init__(self, zones: Sequence[CounterZone]) -> None:
        self._zones = tuple(zones)
        self._last: list[float] = []
        self._last_s = 0.0
        self._sum = 0.0
        self._num_readings = 0
        self._is_broken = False

    def read(self, now_s: float) -> None:
        """See EnergyTally."""
        found = [zone.joules() for zone in self._zones]
        values = [value for value in found if value is not None]
        if len(values) < len(found):
            self._is_broken = True
            return
        if self._num_readings:
            for zone, before, now in zip(self._zones, self._last, values, strict=True):
                grown = now - before if now >= before else now - before + zone.wraps_at
                # A counter that was set back, as after a suspend, seems to have wrapped.
                most = MOST_ZONE_WATTS * max(now_s - self._last_s, 0.01)
                self._is_broken |= not 0 <= grown <= most
                self._sum += grown
        self._last, self._last_s = values, now_s
        self._num_readings += 1

    def joules(self) -> float | None:
        """See EnergyTally."""
        return None if self._is_broken or self._num_readings < 2 else self._sum


class GaugeTally:
    """The area under a gauge's readings. One that fails is left out, unless it is the first or the
    last: the energy would then be that of a shorter time."""

    def __init__(self, watts: Callable[[], float | None]) -> None:
        self._watts = watts
        self._last: tuple[float, float] | None = None
        self._sum = 0.0
        self._num_readings = 0
        self._begins_late = False
        self._has_failed = False  # since the last good reading

    def read(self, now_s: float) -> None:
        """See EnergyTally."""
        watts = self._watts()
        if watts is None or not 0 < watts <= MOST_WATTS:
            self._begins_late |= self._last is None
            self._has_failed = True
            return
        self._has_failed = False
        if self._last is not None:
            last_s, last = self._last
            self._sum += (now_s - last_s) * (last + watts) / 2
        self._last = (now_s, watts)
        self._num_readings += 1

    def joules(self) -> float | None:
        """See EnergyTally."""
        is_whole = self._num_readings >= 2 and not (self._begins_late or self._has_failed)
        return self._sum if is_whole else None


class EnergyMeter:
    """Measures from `start` to `stop` with one sensor, in a thread of its own that mostly sleeps.

    It can be started again. now: seconds, of a steady clock.
    """

    def __init__(self, sensor: EnergySensor, *, now: Callable[[], float] = time.monotonic) -> None:
        self.sensor = sensor
        self._now = now
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Take the first reading."""
        self._tally = self.sensor.tally()
        self._done.clear()
        self._started_s = self._now()
        self._tally.read(self._started_s)
        self._thread = threading.Thread(target=self._watch, name="energy-meter", daemon=True)
        self._thread.start()

    def stop(self) -> MeasuredEnergy | None:
        """Take the last reading. None where the sensor gave no energy, or it was not started."""
        if self._thread is None:
            return None
        self._done.set()
        self._thread.join()
        self._thread = None
        ended_s = self._now()
        self._tally.read(ended_s)
        joules, seconds = self._tally.joules(), ended_s - self._started_s
        if joules is None or seconds <= 0:
            return None
        return MeasuredEnergy(
            joules=joules, seconds=seconds, sensor=self.sensor.name, covers=self.sensor.covers
        )

    def _watch(self) -> None:
        while not self._done.wait(self.sensor.every_s):
            self._tally.read(self._now())

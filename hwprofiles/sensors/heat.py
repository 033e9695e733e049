"""Temperature, clock and throttling, as far as the system shows them.

Sources: the kernel's driver-api/thermal/sysfs-api.rst, hwmon/sysfs-interface.rst and
admin-guide/pm/cpufreq.rst.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hwprofiles.cgroups import text_of
from hwprofiles.machine_limits import usable_cpu_numbers
from hwprofiles.sensors.system_files import SYSTEM_ROOT, folders_in, whole_number
from hwprofiles.sensors.vcgencmd import RunTool, run_vcgencmd, throttled_flag

THERMAL: Final = "sys/class/thermal"
HWMON: Final = "sys/class/hwmon"
CPUS: Final = "sys/devices/system/cpu"
# Sensors that know no temperature report 0 or what no machine can have.
HOTTEST_MILLI_C: Final = 150_000
MOST_KHZ: Final = 20_000_000
# Monitors that are in a processor or beside it. Others measure drives, radios and power supplies.
PROCESSOR_CHIPS: Final = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal")
PROCESSOR_ZONES: Final = re.compile(r".*(cpu|soc|x86_pkg|core|tj).*", re.IGNORECASE)
# Cooling devices that hold the clock down; fans are others.
CLOCK_COOLERS: Final = re.compile(r"(thermal-)?(cpufreq|cpuidle|Processor).*", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatReading:
    """One look at the machine; None: the system does not show it.

    celsius: the hottest sensor of the processor (of all, where none names it), by the name
    `sensor`. clock_hz: mean over the CPUs that this process may use. is_throttled: whether a
    cooling device or the firmware holds the clock down now.
    """

    celsius: float | None = None
    sensor: str = ""
    clock_hz: float | None = None
    is_throttled: bool | None = None


def read_heat(root: Path = SYSTEM_ROOT, run: RunTool = run_vcgencmd) -> HeatReading:
    """Look at the machine whose files begin at `root`."""
    found = list(_temperatures(root))
    named = [item for item in found if item[2]] or found
    hottest = max(named, default=None)
    return HeatReading(
        celsius=None if hottest is None else hottest[0],
        sensor="" if hottest is None else hottest[1],
        clock_hz=clock_hz(root),
        is_throttled=_is_throttled(root, run),
    )


def clock_hz(root: Path = SYSTEM_ROOT) -> float | None:
    """Mean clock of the usable CPUs: cpufreq's, or what /proc/cpuinfo says."""
    kinds = (f"{CPUS}/cpu{number}/cpufreq/scaling_cur_freq" for number in usable_cpu_numbers())
    found = [whole_number(root / path, low=1_000, high=MOST_KHZ) for path in kinds]
    clocks = [1e3 * khz for khz in found if khz is not None]
    if not clocks:
        clocks = list(_cpuinfo_hz(text_of(root / "proc/cpuinfo") or ""))
    return statistics.fmean(clocks) if clocks else None


def _cpuinfo_hz(text: str) -> Iterator[float]:
    for match in re.finditer(r"^cpu MHz\s*:\s*([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*$", text, re.M):
        hz = 1e6 * float(match[1])
        if 1e6 <= hz <= 1e3 * MOST_KHZ:
            yield hz


def _temperatures(root: Path) -> Iterator[tuple[float, str, bool]]:
    """Degrees Celsius, the sensor's name, and whether it is the processor's."""
    for zone in folders_in(root / THERMAL, "thermal_zone*"):
        name = text_of(zone / "type") or zone.name
        milli = whole_number(zone / "temp", low=1, high=HOTTEST_MILLI_C)
        if milli is not None:
            yield milli / 1e3, name, bool(PROCESSOR_ZONES.fullmatch(name))
    for chip in folders_in(root / HWMON, "hwmon*"):
        name = text_of(chip / "name") or chip.name
        for path in folders_in(chip, "temp*_input"):
            milli = whole_number(path, low=1, high=HOTTEST_MILLI_C)
            if milli is not None:
                label = text_of(path.with_name(path.name.replace("_input", "_label")))
                yield milli / 1e3, f"{name} {label or path.name}", name in PROCESSOR_CHIPS


def _is_throttled(root: Path, run: RunTool) -> bool | None:
    flags = [throttled_flag(run)]
    for cooler in folders_in(root / THERMAL, "cooling_device*"):
        if CLOCK_COOLERS.fullmatch(text_of(cooler / "type") or ""):
            state = whole_number(cooler / "cur_state", low=0, high=1_000_000)
            flags.append(None if state is None else state > 0)
    known = [flag for flag in flags if flag is not None]
    return any(known) if known else None

"""What the device is short of, as far as the system shows it: memory, charge, cooling."""

from __future__ import annotations

from typing import Final

import psutil

from hwprofiles.machine_limits import available_memory_bytes, total_memory_bytes
from optimizer.policy.split_moves import Signs

LEAST_CRITICAL_C: Final = 50.0  # drivers that know none report 0, or what is no temperature


def read_signs() -> Signs:
    """The signs of this moment. What the system does not show is None."""
    free_memory = available_memory_bytes() / total_memory_bytes()
    return Signs(free_memory=free_memory, battery=_battery(), heat=_heat())


def _battery() -> float | None:
    try:
        battery = psutil.sensors_battery()
    except (AttributeError, OSError):  # not on this system; a container without /sys
        return None
    if battery is None or battery.power_plugged is not False:
        return None
    return float(battery.percent) / 100


def _heat() -> float | None:
    """The hottest sensor over its own critical temperature; None where none has such a figure."""
    try:
        sensors = psutil.sensors_temperatures()
    except (AttributeError, OSError):
        return None
    shares = [
        each.current / each.critical
        for group in sensors.values()
        for each in group
        if each.critical is not None and each.critical >= LEAST_CRITICAL_C
    ]
    return max(shares, default=None)

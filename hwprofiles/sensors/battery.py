"""What a battery gives, while nothing charges it: phones and laptops.

The screen, the radio and every other program are in it, and many gauges say something new only once
in several seconds. Source: the kernel's ABI/testing/sysfs-class-power.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from hwprofiles.cgroups import text_of
from hwprofiles.sensors.energy import EnergySensor, GaugeTally
from hwprofiles.sensors.system_files import folders_in, whole_number

FOLDER: Final = "sys/class/power_supply"
EVERY_S: Final = 1.0
MOST_MICRO: Final = 1_000_000_000  # watts, volts or amperes


def battery_sensor(root: Path) -> EnergySensor | None:
    """The one battery; None on the mains, and where there are several or none."""
    found = list(_batteries(root))
    if len(found) != 1 or _watts(found[0]) is None:
        return None
    return EnergySensor(
        name=f"battery {found[0].name}",
        covers="battery",
        every_s=EVERY_S,
        tally=lambda: GaugeTally(partial(_watts, found[0])),
    )


def _batteries(root: Path) -> Iterator[Path]:
    """Batteries of the machine itself; a mouse's or a keyboard's says that its scope is it."""
    for folder in folders_in(root / FOLDER, "*"):
        if text_of(folder / "type") == "Battery" and text_of(folder / "scope") != "Device":
            yield folder


def _watts(folder: Path) -> float | None:
    """Watts while it discharges. Some drivers give what flows out a minus sign."""
    if text_of(folder / "status") != "Discharging":
        return None
    power = whole_number(folder / "power_now", low=-MOST_MICRO, high=MOST_MICRO)
    if power:
        return abs(power) / 1e6
    amperes = whole_number(folder / "current_now", low=-MOST_MICRO, high=MOST_MICRO)
    volts = whole_number(folder / "voltage_now", low=1, high=MOST_MICRO)
    if not amperes or volts is None:
        return None
    return abs(amperes) / 1e6 * volts / 1e6

"""A board's power at its input, from the kernel's hardware monitors (hwmon).

Only what measures a whole board counts. A Jetson's INA3221 has several channels, of which one is
the input and the others are rails behind it: adding them up would count the same watts twice. Other
monitors (graphics cards, drives) measure something else. Sources: the kernel's
hwmon/sysfs-interface.rst, hwmon/ina3221.rst, hwmon/ina2xx.rst and hwmon/acpi_power_meter.rst;
NVIDIA's Jetson Linux Developer Guide for the labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from hwprofiles.cgroups import text_of
from hwprofiles.sensors.energy import MOST_WATTS, EnergySensor, GaugeTally
from hwprofiles.sensors.system_files import folders_in, whole_number

FOLDER: Final = "sys/class/hwmon"
EVERY_S: Final = 0.2
# Labels of a channel that is the whole board's input.
INPUT_LABELS: Final = ("VDD_IN", "POM_5V_IN")
# Monitors of a whole machine that have one power figure.
WHOLE_MACHINE: Final = ("power_meter",)
# Chips that boards have at their input, where there is one of them only.
SHUNT_CHIPS: Final = ("ina219", "ina220", "ina226", "ina230", "ina231", "ina260")
MOST_MILLI: Final = 1_000_000  # volts or amperes
_FIGURES: Final = ("power1_average", "power1_input")


def board_sensor(root: Path) -> EnergySensor | None:
    """The board's input; None where no monitor is known to measure it."""
    chips = list(_chips(root))
    for folder, chip in chips:
        channel = _input_channel(folder) if chip == "ina3221" else None
        if channel is not None:
            label = text_of(folder / f"in{channel}_label")
            return _sensor(f"{chip} {label}", partial(_channel_watts, folder, channel))
    for folder, chip in chips:
        if chip in WHOLE_MACHINE and (figure := _figure(folder)) is not None:
            return _sensor(f"{chip} {figure}", partial(_watts, folder / figure))
    shunts = [(folder, chip) for folder, chip in chips if chip in SHUNT_CHIPS]
    if len(shunts) == 1 and (figure := _figure(shunts[0][0])) is not None:
        folder, chip = shunts[0]
        return _sensor(f"{chip} {figure}", partial(_watts, folder / figure))
    return None


def _sensor(name: str, watts: partial[float | None]) -> EnergySensor:
    return EnergySensor(name=name, covers="board", every_s=EVERY_S, tally=lambda: GaugeTally(watts))


def _chips(root: Path) -> Iterator[tuple[Path, str]]:
    for folder in folders_in(root / FOLDER, "hwmon*"):
        name = text_of(folder / "name")
        if name is not None:
            yield folder, name


def _input_channel(folder: Path) -> int | None:
    """The number of the channel that is the board's input and can be read."""
    for channel in (1, 2, 3):
        label = text_of(folder / f"in{channel}_label")
        if label in INPUT_LABELS and _channel_watts(folder, channel) is not None:
            return channel
    return None


def _channel_watts(folder: Path, channel: int) -> float | None:
    volts = whole_number(folder / f"in{channel}_input", low=1, high=MOST_MILLI)
    amperes = whole_number(folder / f"curr{channel}_input", low=1, high=MOST_MILLI)
    return None if volts is None or amperes is None else volts * amperes / 1e6


def _figure(folder: Path) -> str | None:
    return next((name for name in _FIGURES if _watts(folder / name) is not None), None)


def _watts(path: Path) -> float | None:
    microwatts = whole_number(path, low=1, high=int(MOST_WATTS * 1e6))
    return None if microwatts is None else microwatts / 1e6

"""Which sensor counts where a machine has several: one, in one order, and never a sum of them.

1. The board's input (`board_power`): what the supply gives to everything.
2. The Raspberry Pi 5's power chip (`vcgencmd`): its rails.
3. The processor's packages (`rapl`): without memory, drives and screen, but exact to milliseconds.
4. The battery (`battery`), while nothing charges it: everything, but slow.

They measure different things, so figures of two kinds do not compare; each figure carries its
sensor's name. Ours.
"""

from __future__ import annotations

from pathlib import Path

from hwprofiles.sensors.battery import battery_sensor
from hwprofiles.sensors.board_power import board_sensor
from hwprofiles.sensors.energy import EnergyMeter, EnergySensor
from hwprofiles.sensors.rapl import rapl_sensor
from hwprofiles.sensors.system_files import SYSTEM_ROOT
from hwprofiles.sensors.vcgencmd import RunTool, pmic_sensor, run_vcgencmd


def energy_sensor(root: Path = SYSTEM_ROOT, run: RunTool = run_vcgencmd) -> EnergySensor | None:
    """The first of these sensors that this process can read; None without one."""
    return board_sensor(root) or pmic_sensor(run) or rapl_sensor(root) or battery_sensor(root)


def energy_meter(root: Path = SYSTEM_ROOT, run: RunTool = run_vcgencmd) -> EnergyMeter | None:
    """A meter with that sensor."""
    sensor = energy_sensor(root, run)
    return None if sensor is None else EnergyMeter(sensor)

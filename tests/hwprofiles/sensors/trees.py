"""Fake trees of system files, as boards have them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write_tree(root: Path, files: Mapping[str, object]) -> Path:
    """Files below `root`, by their path from it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="utf-8")
    return root


def rapl_files(package: int = 0, **changes: object) -> dict[str, object]:
    """One package, with a core zone and dram below it and beside it psys."""
    top = f"sys/class/powercap/intel-rapl:{package}"
    values: dict[str, object] = {"energy_uj": 5_000_000, "max_energy_range_uj": 65_000_000_000}
    values |= changes
    return {
        f"{top}/name": f"package-{package}",
        **{f"{top}/{name}": value for name, value in values.items()},
        f"{top}:0/name": "core",
        f"{top}:0/energy_uj": 1,
        f"{top}:1/name": "dram",
        f"{top}:1/energy_uj": 1,
    }


# A Jetson Orin Nano: one INA3221, whose first channel is the input, the others rails behind it.
JETSON: dict[str, object] = {
    "sys/class/hwmon/hwmon0/name": "tmp451",
    "sys/class/hwmon/hwmon1/name": "ina3221",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_IN",
    "sys/class/hwmon/hwmon1/in1_input": 5000,
    "sys/class/hwmon/hwmon1/curr1_input": 1600,
    "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV",
    "sys/class/hwmon/hwmon1/in2_input": 5000,
    "sys/class/hwmon/hwmon1/curr2_input": 900,
}

# Of a Raspberry Pi 5: amperes and volts of three rails, and two voltages without a current.
PMIC = """\
   3V7_WL_SW_A current(0)=0.10000000A
   3V3_SYS_A current(1)=0.20000000A
  VDD_CORE_A current(7)=1.50000000A
   3V7_WL_SW_V volt(8)=3.70000000V
   3V3_SYS_V volt(9)=3.30000000V
  VDD_CORE_V volt(15)=0.80000000V
     EXT5V_V volt(24)=5.10000000V
      BATT_V volt(25)=0.00000000V
"""
PMIC_WATTS = 0.1 * 3.7 + 0.2 * 3.3 + 1.5 * 0.8


def battery_files(**changes: object) -> dict[str, object]:
    """A battery that discharges."""
    values: dict[str, object] = {
        "type": "Battery",
        "status": "Discharging",
        "current_now": -500_000,
        "voltage_now": 4_000_000,
    }
    values |= changes
    folder = "sys/class/power_supply/BAT0"
    return {f"{folder}/{name}": value for name, value in values.items() if value is not None}

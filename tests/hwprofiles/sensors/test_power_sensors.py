"""Every kind of power sensor on a fake tree: which is read, what it gives, what is dropped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hwprofiles.sensors.battery import battery_sensor
from hwprofiles.sensors.board_power import board_sensor
from hwprofiles.sensors.energy import EnergySensor
from hwprofiles.sensors.rapl import rapl_sensor
from hwprofiles.sensors.registry import energy_meter, energy_sensor
from hwprofiles.sensors.vcgencmd import pmic_sensor, rails_watts, throttled_flag
from tests.hwprofiles.sensors.trees import (
    JETSON,
    PMIC,
    PMIC_WATTS,
    battery_files,
    rapl_files,
    write_tree,
)

HOSTILE = ("", "max", "nan", "-1", "1e9", "99999999999999999999", "0x10", "१२", "5\n6")


def no_tool(word: str) -> str | None:
    return None


def watts_of(sensor: EnergySensor | None) -> float | None:
    """What a gauge says, by its energy over a second."""
    assert sensor is not None
    tally = sensor.tally()
    tally.read(0.0)
    tally.read(1.0)
    return tally.joules()


def test_rapl_adds_packages_and_nothing_that_overlaps(tmp_path: Path) -> None:
    files = rapl_files(0) | rapl_files(1)
    files |= {"sys/class/powercap/intel-rapl:2/name": "psys"}
    files |= {"sys/class/powercap/intel-rapl:2/energy_uj": 7, "sys/class/powercap/dtpm/name": "x"}
    sensor = rapl_sensor(write_tree(tmp_path, files))
    assert sensor is not None
    assert sensor.name == "rapl package-0 + package-1"
    assert sensor.covers == "processor"
    tally = sensor.tally()
    tally.read(0.0)
    write_tree(tmp_path, rapl_files(0, energy_uj=7_000_000) | rapl_files(1, energy_uj=8_500_000))
    tally.read(1.0)
    assert tally.joules() == pytest.approx(2.0 + 3.5)


def test_a_rapl_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    wrap = {"max_energy_range_uj": 10_000_000}
    sensor = rapl_sensor(write_tree(tmp_path, rapl_files(energy_uj=9_000_000, **wrap)))
    assert sensor is not None
    tally = sensor.tally()
    for second, micro in enumerate((9_000_000, 1_000_000, 3_000_000)):
        write_tree(tmp_path, rapl_files(energy_uj=micro, **wrap))
        tally.read(float(second))
    assert tally.joules() == pytest.approx(2.0 + 2.0)


def test_a_counter_that_jumps_or_vanishes_gives_no_energy(tmp_path: Path) -> None:
    sensor = rapl_sensor(write_tree(tmp_path, rapl_files()))
    assert sensor is not None
    jumps, vanishes = sensor.tally(), sensor.tally()
    jumps.read(0.0)
    vanishes.read(0.0)
    write_tree(tmp_path, rapl_files(energy_uj=60_000_000_000))  # 60 kJ within a second
    jumps.read(1.0)
    assert jumps.joules() is None
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    vanishes.read(1.0)
    assert vanishes.joules() is None


@pytest.mark.parametrize("text", HOSTILE)
def test_a_rapl_counter_that_is_no_number_is_no_sensor(tmp_path: Path, text: str) -> None:
    assert rapl_sensor(write_tree(tmp_path, rapl_files(energy_uj=text))) is None
    assert rapl_sensor(write_tree(tmp_path, rapl_files(max_energy_range_uj=text))) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_rapl_counter_that_only_root_reads_is_no_sensor(tmp_path: Path) -> None:
    write_tree(tmp_path, rapl_files())
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").chmod(0)
    assert rapl_sensor(tmp_path) is None


def test_a_file_that_cannot_be_read_is_no_sensor(tmp_path: Path) -> None:
    write_tree(tmp_path, rapl_files())
    counter = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    counter.unlink()
    counter.mkdir()  # reading it fails, whoever asks
    assert rapl_sensor(tmp_path) is None


def test_a_jetsons_input_counts_and_its_rails_do_not(tmp_path: Path) -> None:
    sensor = board_sensor(write_tree(tmp_path, JETSON))
    assert sensor is not None
    assert (sensor.name, sensor.covers) == ("ina3221 VDD_IN", "board")
    assert watts_of(sensor) == pytest.approx(8.0)


def test_rails_without_an_input_are_not_added_up(tmp_path: Path) -> None:
    files = JETSON | {"sys/class/hwmon/hwmon1/in1_label": "VDD_GPU_SOC"}
    assert board_sensor(write_tree(tmp_path, files)) is None


@pytest.mark.parametrize("text", HOSTILE)
def test_an_input_that_is_no_number_is_no_sensor(tmp_path: Path, text: str) -> None:
    files = JETSON | {"sys/class/hwmon/hwmon1/curr1_input": text}
    assert board_sensor(write_tree(tmp_path, files)) is None


def test_monitors_of_other_things_are_not_the_board(tmp_path: Path) -> None:
    files = {"sys/class/hwmon/hwmon0/name": "amdgpu"}
    files |= {"sys/class/hwmon/hwmon0/power1_average": "30000000"}
    assert board_sensor(write_tree(tmp_path, files)) is None


def test_one_shunt_chip_is_the_input_and_two_are_not_known(tmp_path: Path) -> None:
    one = {"sys/class/hwmon/hwmon3/name": "ina226"}
    one |= {"sys/class/hwmon/hwmon3/power1_input": "6500000"}
    sensor = board_sensor(write_tree(tmp_path, one))
    assert watts_of(sensor) == pytest.approx(6.5)
    two = {"sys/class/hwmon/hwmon4/name": "ina226"}
    two |= {"sys/class/hwmon/hwmon4/power1_input": "2000000"}
    assert board_sensor(write_tree(tmp_path, two)) is None


def test_a_server_boards_meter_is_read_by_its_average(tmp_path: Path) -> None:
    files = {"sys/class/hwmon/hwmon0/name": "power_meter"}
    files |= {"sys/class/hwmon/hwmon0/power1_average": "120000000"}
    sensor = board_sensor(write_tree(tmp_path, files))
    assert sensor is not None
    assert sensor.name == "power_meter power1_average"
    assert watts_of(sensor) == pytest.approx(120.0)


def test_a_pis_rails_need_volts_and_amperes() -> None:
    assert rails_watts(PMIC) == pytest.approx(PMIC_WATTS)
    assert rails_watts(PMIC.replace("VDD_CORE_V", "OTHER_V")) is None
    sensor = pmic_sensor(lambda word: PMIC if word == "pmic_read_adc" else None)
    assert watts_of(sensor) == pytest.approx(PMIC_WATTS)


@pytest.mark.parametrize(
    "text", [None, "", 'error=1 error_msg="Command not registered"', "A_A current(0)=1A"]
)
def test_a_board_without_such_a_chip_has_no_rails(text: str | None) -> None:
    assert rails_watts(text) is None
    assert pmic_sensor(lambda _word: text) is None


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        ("throttled=0x0\n", False),
        ("throttled=0x50000\n", False),  # it has happened, and is over
        ("throttled=0x50005\n", True),
        ("throttled=yes", None),
        (None, None),
    ],
)
def test_the_firmwares_flags(text: str | None, flag: bool | None) -> None:
    assert throttled_flag(lambda _word: text) is flag


@pytest.mark.parametrize(
    ("changes", "watts"),
    [
        ({}, 2.0),
        ({"current_now": 500_000}, 2.0),
        ({"power_now": 3_000_000}, 3.0),
        ({"power_now": 0}, 2.0),
    ],
)
def test_a_battery_gives_power_or_current_and_voltage(
    tmp_path: Path, changes: dict[str, object], watts: float
) -> None:
    sensor = battery_sensor(write_tree(tmp_path, battery_files(**changes)))
    assert watts_of(sensor) == pytest.approx(watts)


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "Charging"},
        {"status": "Full"},
        {"type": "Mains"},
        {"scope": "Device"},  # of a mouse
        {"current_now": None},
        {"current_now": 0},
        {"voltage_now": "x"},
        {"voltage_now": -4_000_000},
    ],
)
def test_a_battery_that_gives_nothing_is_no_sensor(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    assert battery_sensor(write_tree(tmp_path, battery_files(**changes))) is None


def test_the_order_of_sensors(tmp_path: Path) -> None:
    def name(root: Path, tool: str | None = None) -> str | None:
        sensor = energy_sensor(root, lambda word: tool if word == "pmic_read_adc" else None)
        return None if sensor is None else sensor.name

    assert name(tmp_path) is None
    assert name(write_tree(tmp_path, battery_files())) == "battery BAT0"
    assert name(write_tree(tmp_path, rapl_files())) == "rapl package-0"
    assert name(tmp_path, PMIC) == "vcgencmd pmic_read_adc"
    assert name(write_tree(tmp_path, JETSON), PMIC) == "ina3221 VDD_IN"


def test_a_machine_without_sensors_has_no_meter(tmp_path: Path) -> None:
    assert energy_meter(tmp_path, no_tool) is None


@pytest.mark.parametrize("value", ["-0.5A", "nanA", "A", "12345678A", "1.0 W"])
def test_a_rail_that_says_no_plausible_number_makes_the_sum_unknown(value: str) -> None:
    whole = "A_A current(0)=1.0A\nA_V volt(1)=5.0V\n"
    assert rails_watts(whole) == pytest.approx(5.0)
    assert rails_watts(whole + f"B_A current(2)={value}\nB_V volt(3)=5.0V\n") is None


def test_the_dies_of_a_package_are_added_up(tmp_path: Path) -> None:
    write_tree(tmp_path, rapl_files())
    (tmp_path / "sys/class/powercap/intel-rapl:0/name").write_text("package-0-die-0\n")
    sensor = rapl_sensor(tmp_path)
    assert sensor is not None
    assert sensor.name == "rapl package-0-die-0"

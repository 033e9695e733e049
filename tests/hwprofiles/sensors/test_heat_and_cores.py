"""Temperatures, clocks, throttling and kinds of cores on fake trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwprofiles.sensors import heat
from hwprofiles.sensors.cores import CpuCore, cpu_cores
from hwprofiles.sensors.heat import HeatReading, read_heat
from tests.hwprofiles.sensors.trees import write_tree

ZONES: dict[str, object] = {
    "sys/class/thermal/thermal_zone0/type": "battery",
    "sys/class/thermal/thermal_zone0/temp": 90000,
    "sys/class/thermal/thermal_zone1/type": "cpu-1-0-usr",
    "sys/class/thermal/thermal_zone1/temp": 61500,
    "sys/class/thermal/thermal_zone2/type": "cpu-1-1-usr",
    "sys/class/thermal/thermal_zone2/temp": "-2147483648",
}


@pytest.fixture(autouse=True)
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heat, "usable_cpu_numbers", lambda: (0, 1))


def look(root: Path, flags: str | None = None) -> HeatReading:
    return read_heat(root, lambda word: flags if word == "get_throttled" else None)


def test_the_processors_hottest_sensor_counts(tmp_path: Path) -> None:
    found = look(write_tree(tmp_path, ZONES))
    assert (found.celsius, found.sensor) == (61.5, "cpu-1-0-usr")
    chip = {"sys/class/hwmon/hwmon0/name": "k10temp", "sys/class/hwmon/hwmon0/temp1_input": 70250}
    chip |= {"sys/class/hwmon/hwmon0/temp1_label": "Tctl"}
    found = look(write_tree(tmp_path, chip))
    assert (found.celsius, found.sensor) == (70.25, "k10temp Tctl")


def test_where_no_sensor_names_the_processor_the_hottest_counts(tmp_path: Path) -> None:
    files = {name: text for name, text in ZONES.items() if "zone0" in name}
    assert look(write_tree(tmp_path, files)).celsius == 90.0


def test_a_system_that_shows_nothing_is_none_everywhere(tmp_path: Path) -> None:
    assert look(tmp_path) == HeatReading()


def test_clocks_of_the_usable_cpus(tmp_path: Path) -> None:
    files: dict[str, object] = {
        f"sys/devices/system/cpu/cpu{number}/cpufreq/scaling_cur_freq": khz
        for number, khz in enumerate((1_800_000, 2_200_000, 9_999_999))  # the third is not ours
    }
    assert look(write_tree(tmp_path, files)).clock_hz == pytest.approx(2.0e9)
    cpuinfo = {"proc/cpuinfo": "cpu MHz\t\t: 2445.430\ncpu MHz\t\t: x\ncpu MHz : 999999.0"}
    other = write_tree(tmp_path / "other", cpuinfo)
    assert look(other).clock_hz == pytest.approx(2.44543e9)


@pytest.mark.parametrize(
    ("kind", "state", "flags", "expected"),
    [
        ("thermal-cpufreq-0", 3, None, True),
        ("thermal-cpufreq-0", 0, None, False),
        ("Processor", 1, None, True),
        ("pwm-fan", 4, None, None),  # a fan at work holds no clock down
        ("thermal-cpufreq-0", "x", None, None),
        ("thermal-cpufreq-0", 0, "throttled=0x4", True),
    ],
)
def test_throttling(
    tmp_path: Path, kind: str, state: object, flags: str | None, expected: bool | None
) -> None:
    folder = "sys/class/thermal/cooling_device0"
    root = write_tree(tmp_path, {f"{folder}/type": kind, f"{folder}/cur_state": state})
    assert look(root, flags).is_throttled is expected


def capacities(*values: int, name: str = "cpu_capacity") -> dict[str, object]:
    return {f"sys/devices/system/cpu/cpu{n}/{name}": value for n, value in enumerate(values)}


def small(root: Path, usable: range) -> list[int]:
    return [core.cpus[0] for core in cpu_cores(root, usable) if core.is_small]


def test_small_cores_by_capacity(tmp_path: Path) -> None:
    # A phone: two small, five big, one largest.
    root = write_tree(tmp_path, capacities(379, 379, 850, 850, 850, 870, 870, 1024))
    assert small(root, range(8)) == [0, 1]
    assert small(root, range(2)) == []  # a container with the small ones alone: all alike


def test_small_cores_by_clock_where_no_capacity_is_shown(tmp_path: Path) -> None:
    name = "cpufreq/cpuinfo_max_freq"
    root = write_tree(tmp_path, capacities(1_800_000, 1_800_000, 2_400_000, 2_400_000, name=name))
    assert small(root, range(4)) == [0, 1]
    favoured = write_tree(tmp_path / "x", capacities(5_750_000, 5_250_000, name=name))
    assert small(favoured, range(2)) == []


def test_a_capacity_that_some_cores_lack_is_not_used(tmp_path: Path) -> None:
    assert small(write_tree(tmp_path, capacities(300, 1024)), range(3)) == []


def test_threads_of_one_core_go_together(tmp_path: Path) -> None:
    files = {
        f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list": text
        for number, text in enumerate(("0,2", "1,3", "0,2", "1,3"))
    }
    root = write_tree(tmp_path, files)
    assert cpu_cores(root, range(4)) == (CpuCore(cpus=(0, 2)), CpuCore(cpus=(1, 3)))
    assert cpu_cores(root, (2, 3)) == (CpuCore(cpus=(2,)), CpuCore(cpus=(3,)))


def test_without_any_file_every_cpu_is_a_core(tmp_path: Path) -> None:
    assert cpu_cores(tmp_path, range(2)) == (CpuCore(cpus=(0,)), CpuCore(cpus=(1,)))

"""What a control group allows is what counts: CPUs in whole ones, memory less what is used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hwprofiles import machine_limits
from hwprofiles.machine_limits import (
    cpu_quota,
    group_free_bytes,
    memory_limit_bytes,
    usable_cpus,
)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "membership", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 1.5),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, "0::/a/b\n", 0.5),
        ({"a/cpu.max": "300000 100000", "cpu.max": "200000 100000"}, "0::/a\n", 2.0),
        ({"cpu.max": "200000 100000"}, "0::/of/the/host\n", 2.0),  # a container sees its own root
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, "3:cpu:/\n", 2.5),
        (
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "-1", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
            "3:cpu,cpuacct:/x\n",
            None,
        ),
        ({"cpu/cpu.cfs_quota_us": "50000"}, "3:cpu:/\n", None),  # without a period
        ({"cpu.max": "100000 0"}, "0::/\n", None),
        ({"cpu.max": "lots of time"}, "0::/\n", None),
        ({}, "0::/\n", None),
        ({"cpu.max": "100000 100000"}, "not a line of cgroups\n", None),
        ({"cpu.max": "100000 100000"}, "4:memory:/\n", None),
    ],
)
def test_the_tightest_quota_of_the_group_and_its_parents_holds(
    tmp_path: Path, files: dict[str, str], membership: str, quota: float | None
) -> None:
    assert cpu_quota(write(tmp_path, files), membership) == quota


@pytest.mark.parametrize(
    ("quota", "expected"), [(None, 8), (0.1, 1), (1.0, 1), (1.5, 2), (7.2, 8), (64.0, 8)]
)
def test_threads_follow_the_quota_and_the_affinity(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machine_limits, "cpu_quota", lambda: quota)
    assert usable_cpus() == expected


V1 = "5:cpu,cpuacct:/docker\n4:memory:/docker\n"
STAT = "anon 5\ninactive_file 40\n"


@pytest.mark.parametrize(
    ("files", "membership", "limit", "free"),
    [
        ({"u/a/memory.max": "max", "u/memory.max": "300\n"}, "0::/u/a\n", 300, 300),
        ({"u/a/memory.max": "200", "u/memory.max": "300"}, "0::/u/a\n", 200, 200),
        ({"u/a/memory.max": "200", "u/a/memory.high": "150"}, "0::/u/a\n", 150, 150),
        ({"u/a/memory.max": "200", "u/memory.high": "120"}, "0::/u/a\n", 120, 120),
        # The parent's other groups use most of it: less is free than our own limit leaves.
        (
            {"u/a/memory.max": "200", "u/a/memory.current": "10",
             "u/memory.max": "300", "u/memory.current": "280", "u/memory.stat": STAT},
            "0::/u/a\n", 200, 60,
        ),
        ({"memory.max": "200", "memory.current": "900"}, "0::/\n", 200, 0),
        ({"memory.max": "max", "memory.high": "max"}, "0::/\n", None, None),
        ({"memory.max": "a lot"}, "0::/\n", None, None),
        ({}, "0::/elsewhere\n", None, None),
        ({"memory/docker/memory.limit_in_bytes": "9223372036854771712"}, V1, None, None),
        (
            {"memory/docker/memory.limit_in_bytes": "1048576",
             "memory/docker/memory.usage_in_bytes": "48576",
             "memory/docker/memory.stat": "total_inactive_file 8576\n"},
            V1, 1048576, 1008576,
        ),
        (
            {"memory/docker/memory.limit_in_bytes": "9223372036854771712",
             "memory/memory.limit_in_bytes": "4096"},
            V1, 4096, 4096,
        ),
    ],
)  # fmt: skip
def test_the_tightest_memory_limit_counts_and_what_the_groups_use_is_taken_off(
    tmp_path: Path, files: dict[str, str], membership: str, limit: int | None, free: int | None
) -> None:
    write(tmp_path, files)
    assert memory_limit_bytes(tmp_path, membership) == limit
    assert group_free_bytes(tmp_path, membership) == free


def test_total_and_available_memory_are_the_groups_where_they_are_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine_limits, "memory_limit_bytes", lambda: 1000)
    monkeypatch.setattr(machine_limits, "group_free_bytes", lambda: 400)
    assert machine_limits.total_memory_bytes() == 1000
    assert machine_limits.available_memory_bytes() == 400
    monkeypatch.setattr(machine_limits, "memory_limit_bytes", lambda: 1 << 60)
    monkeypatch.setattr(machine_limits, "group_free_bytes", lambda: None)
    assert 1 << 20 < machine_limits.total_memory_bytes() < 1 << 60
    assert 0 < machine_limits.available_memory_bytes() < machine_limits.total_memory_bytes()


def test_libraries_are_told_of_a_quota_and_a_users_own_choice_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine_limits, "_visible_cpus", lambda: 16)
    monkeypatch.setattr(machine_limits, "cpu_quota", lambda: None)
    for name in machine_limits._THREAD_VARIABLES:
        monkeypatch.setenv(name, "3")  # so that it is put back
        monkeypatch.delenv(name)
    machine_limits.limit_library_threads()
    assert "OPENBLAS_NUM_THREADS" not in os.environ
    monkeypatch.setattr(machine_limits, "cpu_quota", lambda: 1.5)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    machine_limits.limit_library_threads()
    told = [os.environ[name] for name in machine_limits._THREAD_VARIABLES]
    assert told == ["2", "7", "2"]


def test_only_one_module_asks_the_system_how_big_it_is() -> None:
    """A count of CPUs or a total of memory taken elsewhere would be the host's."""
    root = Path(__file__).parents[2]
    rooms = (
        "splitpoint",
        "hwprofiles",
        "codec",
        "decoding",
        "protos",
        "optimizer",
        "edge",
        "cloud",
    )
    asked = ("os.cpu_count(", "psutil.cpu_count(", "sched_getaffinity", "virtual_memory(")
    found = {
        path.relative_to(root).as_posix()
        for room in rooms
        for path in (root / room).rglob("*.py")
        if any(word in path.read_text(encoding="utf-8") for word in asked)
    }
    # The profiler keeps a share of the host's memory free for others.
    assert found == {"hwprofiles/machine_limits.py", "hwprofiles/profiler/system_facts.py"}

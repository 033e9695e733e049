"""A CPU quota counts like CPUs that are not there: in whole ones, rounded up, at least one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import hwprofiles.cpus
from hwprofiles.cpus import cpu_quota, usable_cpus


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
    monkeypatch.setattr(hwprofiles.cpus, "cpu_quota", lambda: quota)
    assert usable_cpus() == expected

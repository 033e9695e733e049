"""What this process may use of the machine: CPUs and memory. Everything else asks here.

The system shows a container the whole host: all its CPUs and all its memory. What counts is the
control group (`docker run --cpus --memory`, Kubernetes limits, systemd's CPUQuota and MemoryMax)
and the affinity.

CPUs: a quota leaves every CPU visible and stops the process once its time is spent. More threads
than the quota then wait for each other, so a process under a quota of 1.5 CPUs counts as one with
2, and at least 1.

Memory: at memory.max a group is killed, at memory.high it is slowed until it gives memory back. So
the lesser of the two is the limit, of our group and of every group above it. Sources: the Linux
kernel's admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil

from hwprofiles.cgroups import CGROUP_ROOT, group_folders, text_of

# cgroup v1 writes "no limit" as a huge number of whole pages.
_NO_LIMIT: Final = 1 << 62
_V1_LIMITS: Final = ("memory.limit_in_bytes",)
_V2_LIMITS: Final = ("memory.max", "memory.high")
# Environment variables from which libraries take their threads when they are loaded.
_THREAD_VARIABLES: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS")


def usable_cpus() -> int:
    """CPUs that this process may use: its affinity and its group's quota, rounded up; at least 1.

    Where the system knows neither, all there are.
    """
    visible = _visible_cpus()
    quota = cpu_quota()
    return visible if quota is None else max(1, min(visible, math.ceil(quota)))


def usable_cpu_numbers() -> tuple[int, ...]:
    """The numbers of the CPUs in this process's affinity, which a container's cpuset limits;
    all there are where the system has no affinity."""
    affinity = getattr(os, "sched_getaffinity", None)
    return tuple(sorted(affinity(0))) if affinity else tuple(range(os.cpu_count() or 1))


def _visible_cpus() -> int:
    return len(usable_cpu_numbers())


def cpu_quota(root: Path = CGROUP_ROOT, membership: str | None = None) -> float | None:
    """The tightest CPU quota of our group and its parents, in CPUs; None without one."""
    return min(_quotas(root, membership), default=None)


def limit_library_threads() -> None:
    """Under a quota, tell libraries that are loaded later how many threads they may start.

    They count the CPUs that they see. Variables that are set already stay.
    """
    count = usable_cpus()
    if count < _visible_cpus():
        for name in _THREAD_VARIABLES:
            os.environ.setdefault(name, str(count))


def memory_limit_bytes(root: Path = CGROUP_ROOT, membership: str | None = None) -> int | None:
    """The tightest memory limit of our group and its parents, v2 or v1; None without one."""
    limits = [limit for _, _, limit in _limited_groups(root, membership)]
    return min(limits, default=None)


def group_free_bytes(root: Path = CGROUP_ROOT, membership: str | None = None) -> int | None:
    """Bytes that our group may still take: the least of limit less use, over it and its parents.

    Pages of files that nobody used lately do not count as used: the system drops them first. None
    without a limit.
    """
    free = [
        max(0, limit - _used(folder, is_v2=is_v2))
        for folder, is_v2, limit in _limited_groups(root, membership)
    ]
    return min(free, default=None)


def total_memory_bytes() -> int:
    """Memory of this machine as far as our group may use it."""
    total = int(psutil.virtual_memory().total)
    limit = memory_limit_bytes()
    return total if limit is None else min(total, limit)


def available_memory_bytes() -> int:
    """Memory that this process could take now without swapping, and without leaving its group's
    limit."""
    available = int(psutil.virtual_memory().available)
    free = group_free_bytes()
    return available if free is None else min(available, free)


def _limited_groups(root: Path, membership: str | None) -> Iterator[tuple[Path, bool, int]]:
    """Each group with a memory limit: its folder, whether it is v2, and the limit in bytes."""
    for folder, is_v2 in group_folders("memory", root, membership):
        names = _V2_LIMITS if is_v2 else _V1_LIMITS
        found = [number for name in names if (number := _number(folder / name)) is not None]
        limits = [number for number in found if number < _NO_LIMIT]
        if limits:
            yield folder, is_v2, min(limits)


def _used(folder: Path, *, is_v2: bool) -> int:
    """Bytes that the group uses, without file pages that are due to be dropped."""
    used = _number(folder / ("memory.current" if is_v2 else "memory.usage_in_bytes")) or 0
    inactive = "inactive_file" if is_v2 else "total_inactive_file"
    for line in (text_of(folder / "memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name == inactive and value.isascii() and value.isdigit():
            used -= int(value[:32])
    return max(0, used)


def _number(path: Path) -> int | None:
    """A control file's whole number; None where it has none ("max") or is not there."""
    text = text_of(path)
    is_number = text is not None and text.isascii() and text.isdigit()
    return int(text[:32]) if text is not None and is_number else None


def _quotas(root: Path, membership: str | None) -> Iterator[float]:
    for folder, is_v2 in group_folders("cpu", root, membership):
        if is_v2:
            words = (text_of(folder / "cpu.max") or "").split()
        else:
            words = [text_of(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
        # v2 writes "max" for no quota, v1 writes -1.
        if len(words) == 2 and all(word.isascii() and word.isdigit() for word in words):
            quota_us, period_us = (int(word[:18]) for word in words)
            if quota_us > 0 and period_us > 0:
                yield quota_us / period_us

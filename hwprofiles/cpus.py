"""How many CPUs this process may use: the one number from which all thread counts come.

A CPU quota (`docker run --cpus`, Kubernetes limits, systemd's CPUQuota) leaves every CPU visible
and stops the process once its time is spent. More threads than the quota then wait for each other,
so a process under a quota of 1.5 CPUs counts as one with 2.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from hwprofiles.cgroups import CGROUP_ROOT, group_folders, text_of


def usable_cpus() -> int:
    """CPUs that this process may use: its affinity and its group's quota, rounded up; at least 1.

    Where the system knows neither, all there are.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    visible = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = cpu_quota()
    return visible if quota is None else max(1, min(visible, math.ceil(quota)))


def cpu_quota(root: Path = CGROUP_ROOT, membership: str | None = None) -> float | None:
    """The tightest CPU quota of our group and its parents, in CPUs; None without one."""
    return min(_quotas(root, membership), default=None)


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

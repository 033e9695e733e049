"""A quiet machine, and one core for each side: what measurements of two sides need on one machine.

Load is what others use of the CPUs, in cores: the busy time of the whole machine less that of this
process, its children and named processes. The load average is no use between runs, because it
remembers one's own work for minutes. Time that a hypervisor gave to other machines counts as
theirs. Other machines of one host also share its caches, its memory and the halves of its cores: no
counter of ours shows that, so a fixed piece of work is timed (`pace_s`). Linux only (`/proc`).
"""

from __future__ import annotations

import math
import os
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

QUIET_CORES: Final = 0.3
LOOK_S: Final = 1.0
SAME_PACE: Final = 0.1  # a core is as fast as before within this share
PACE_PATIENCE_S: Final = 60.0
_PACE_REPEATS: Final = 7
# A core that was idle for seconds is slower at first, on some hosts by 40 %.
_PACE_WARM_S: Final = 1.0
_SMALL, _LARGE = 1 << 12, 1 << 22  # float32 values: within a core's cache, and beyond all caches
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@contextmanager
def pinned(cpu: int | None, *, priority: int = 0) -> Iterator[None]:
    """Children that this thread starts inside run on one CPU alone; None: wherever they may.

    Libraries take their number of threads from the affinity, so such a child has one thread.
    priority: of SCHED_FIFO, which needs root; 0: like any other program.
    """
    before = os.sched_getaffinity(0)
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    if priority:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    try:
        yield
    finally:
        if priority:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, before)


def give_way_to_messages() -> None:
    """At real-time priority this thread gives way to all others of its process, old and new.

    SCHED_FIFO never shares a core among threads of one priority: a message that another thread
    should send would wait until this one has computed all there is. Ordinary threads share.
    """
    if os.sched_getscheduler(0) != os.SCHED_FIFO:
        return
    own = os.sched_getparam(0).sched_priority

    def stay_above(*_event: object) -> None:
        os.sched_setparam(0, os.sched_param(own))
        sys.setprofile(None)

    threading.setprofile(stay_above)  # new threads begin like the one that starts them
    os.sched_setparam(0, os.sched_param(own - 1))


def let_busiest_give_way(process: int) -> None:
    """The same from outside, for a process that starts its threads from others: the thread that has
    used most of the CPU gives way."""
    threads = [int(folder.name) for folder in Path(f"/proc/{process}/task").glob("[0-9]*")]
    busiest = max(threads, key=lambda thread: process_s(process, thread))
    if os.sched_getscheduler(busiest) == os.SCHED_FIFO:
        own = os.sched_getparam(busiest).sched_priority
        os.sched_setparam(busiest, os.sched_param(own - 1))


def two_cpus() -> tuple[int | None, int | None]:
    """A CPU for the device's side and one for the server's; (None, None) where there is one."""
    cpus = sorted(os.sched_getaffinity(0))
    return (cpus[0], cpus[1]) if len(cpus) > 1 else (None, None)


@dataclass(slots=True)
class OthersLoad:
    """Cores that other programs use from its making on. own: processes of ours that go on."""

    own: Sequence[int] = ()
    _began_s: float = field(default_factory=time.monotonic)
    _busy: float = field(default=0.0)
    _ours: float = field(default=0.0)

    def __post_init__(self) -> None:
        self._busy, self._ours = busy_s(), self._own_s()

    def cores(self) -> float:
        """The mean so far, at least 0."""
        passed = max(time.monotonic() - self._began_s, 1e-3)
        others = (busy_s() - self._busy) - (self._own_s() - self._ours)
        return max(others / passed, 0.0)

    def _own_s(self) -> float:
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        mine = resource.getrusage(resource.RUSAGE_SELF)
        total = sum(used.ru_utime + used.ru_stime for used in (ended, mine))
        return total + sum(map(process_s, self.own))


def wait_until_quiet(
    own: Sequence[int] = (),
    *,
    limit: float = QUIET_CORES,
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """Return once others have used less than `limit` cores for a moment; `tell` hears once that
    this takes longer."""
    told = False
    while True:
        load = OthersLoad(own)
        time.sleep(LOOK_S)
        cores = load.cores()
        if cores < limit:
            return
        if not told:
            tell(f"waiting for a quiet machine: others use {cores:.1f} cores")
            told = True


def pace_s(cpu: int | None, *, priority: int = 0) -> float:
    """Seconds of a fixed piece of work on this CPU, once it is warm: computing within a core's
    cache, and reading memory. The geometric mean of both medians."""
    small = np.linspace(1.0, 2.0, _SMALL, dtype=np.float32)
    large = np.ones(_LARGE, dtype=np.float32)
    out = np.empty_like(small)
    compute, read = [], []
    with pinned(cpu, priority=priority):
        warm_s = time.perf_counter() + _PACE_WARM_S
        while time.perf_counter() < warm_s:
            np.multiply(small, small, out=out)
        for _ in range(_PACE_REPEATS):
            begun_s = time.perf_counter()
            for _ in range(1500):
                np.multiply(small, small, out=out)
            between_s = time.perf_counter()
            for _ in range(2):
                large.sum()
            compute.append(between_s - begun_s)
            read.append(time.perf_counter() - between_s)
    return math.sqrt(statistics.median(compute) * statistics.median(read))


class Pace:
    """How fast CPUs are now, over how fast they were when this was made."""

    def __init__(self, cpus: Sequence[int | None], *, priority: int = 0) -> None:
        self._priority = priority
        self._before = {cpu: pace_s(cpu, priority=priority) for cpu in cpus}

    def slowdown(self) -> float:
        """Seconds now over seconds then, of the CPU that differs most: 1 where none does."""
        found = (pace_s(cpu, priority=self._priority) / s for cpu, s in self._before.items())
        return max(found, key=lambda ratio: abs(math.log(ratio)))

    def wait(
        self,
        *,
        patience_s: float = PACE_PATIENCE_S,
        tell: Callable[[str], None] = lambda text: None,
    ) -> float:
        """Return the slowdown once there is none, or after `patience_s`; `tell` hears once."""
        begun_s, told = time.monotonic(), False
        while not same_pace(found := self.slowdown()):
            if time.monotonic() - begun_s > patience_s:
                break
            if not told:
                tell(f"waiting for the host: this machine takes {found:.2f} times as long")
                told = True
            time.sleep(LOOK_S)
        return found


def same_pace(slowdown: float) -> bool:
    """Whether a slowdown is none."""
    return abs(math.log(slowdown)) <= math.log(1 + SAME_PACE)


def busy_s() -> float:
    """Seconds of all CPUs that were not idle since the machine was started."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_S


def process_s(process_id: int, thread: int | None = None) -> float:
    """CPU seconds of one process, or of one of its threads; 0 where it has ended."""
    folder = Path(f"/proc/{process_id}")
    try:
        file = folder / "stat" if thread is None else folder / "task" / str(thread) / "stat"
        text = file.read_text(encoding="utf-8")
    except OSError:
        return 0.0
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def child_ids(of: int | None = None) -> list[int]:
    """Processes whose parent is `of` (None: this one)."""
    mine = os.getpid() if of is None else of
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text(encoding="utf-8")
        except OSError:
            continue
        if int(text.rpartition(")")[2].split()[1]) == mine:
            found.append(int(folder.name))
    return found

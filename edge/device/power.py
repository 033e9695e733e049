"""Which CPUs this process runs on, and what `--power` does to it.

The number of CPUs (`hwprofiles.machine_limits`) sets the threads where nothing else does.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Final

from edge.errors import InputError
from hwprofiles.machine_limits import usable_cpus
from hwprofiles.sensors.cores import cpu_cores
from optimizer.policy.power import PowerChoice, power_choice

MAX_CPU_DIGITS: Final = 5


def pin_to(cpus: str) -> None:
    """Keep this process, and every thread it will start, on `cpus`, such as '0-3' or '0,2'.

    InputError when it is no such list, when a CPU does not exist, or where the system cannot.
    """
    chosen = parse_cpus(cpus)
    if not hasattr(os, "sched_setaffinity"):
        raise InputError("this system cannot keep a process on chosen CPUs (--affinity)")
    try:
        _pin_all(chosen)
    except OSError as error:
        raise InputError(f"CPUs {cpus}: {error.strerror} (--affinity)") from error


def apply_power(setting: str) -> PowerChoice:
    """Put this process, and every thread it will start, where `setting` wants it.

    Within the affinity that it has already, and so within a container's cpuset. Returns what was
    chosen. Where the system cannot keep a process on chosen CPUs, `cpus` is empty.
    """
    choice = power_choice(setting, cpu_cores(), num_usable=usable_cpus())
    if choice.niceness:
        for thread in _threads():
            lower = max(choice.niceness, os.getpriority(os.PRIO_PROCESS, thread))
            with contextlib.suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, thread, lower)
    if not choice.cpus:
        return choice
    try:
        _pin_all(frozenset(choice.cpus))
    except (AttributeError, OSError):  # not on this system; a core that sleeps, as phones have
        return replace(choice, cpus=())
    return choice


def _threads() -> list[int]:
    """The threads that this process has; 0, the calling one, where the system does not list them.

    On Linux a priority and an affinity belong to a thread. Libraries have started some by now.
    """
    try:
        return [int(entry.name) for entry in Path("/proc/self/task").iterdir()]
    except (OSError, ValueError):
        return [0]


def _pin_all(cpus: frozenset[int]) -> None:
    for thread in _threads():
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(thread, cpus)


def parse_cpus(text: str) -> frozenset[int]:
    """'0-2,5' is {0, 1, 2, 5}."""
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InputError(f"{text!r} is not a list of CPUs such as 0-3 or 0,2")
        if max(len(first), len(last)) > MAX_CPU_DIGITS:
            raise InputError(f"{text!r} names a CPU beyond any that exists")
        chosen.update(range(int(first), int(last or first) + 1))
    if not chosen:
        raise InputError(f"{text!r} names no CPU")
    return frozenset(chosen)

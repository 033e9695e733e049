"""Which CPUs this process runs on. Their number (`hwprofiles.machine_limits`) sets the threads."""

from __future__ import annotations

import os
from typing import Final

from edge.errors import InputError

MAX_CPU_DIGITS: Final = 5


def pin_to(cpus: str) -> None:
    """Keep this process, and every thread it will start, on `cpus`, such as '0-3' or '0,2'.

    InputError when it is no such list, when a CPU does not exist, or where the system cannot.
    """
    chosen = parse_cpus(cpus)
    if not hasattr(os, "sched_setaffinity"):
        raise InputError("this system cannot keep a process on chosen CPUs (--affinity)")
    try:
        os.sched_setaffinity(0, chosen)
    except OSError as error:
        raise InputError(f"CPUs {cpus}: {error.strerror} (--affinity)") from error


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

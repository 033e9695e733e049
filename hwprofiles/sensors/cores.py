"""The CPUs that this process may use: which are one core, and which are the small ones.

A processor of two kinds of cores (Arm's big.LITTLE, Intel's hybrids) says so by the cores'
capacity (arm64, and x86 from Linux 6.12 on), or else by their highest clock. Sources: the kernel's
admin-guide/cputopology.rst and scheduler/sched-capacity.rst. The shares below are ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hwprofiles.cgroups import text_of
from hwprofiles.machine_limits import usable_cpu_numbers
from hwprofiles.sensors.system_files import SYSTEM_ROOT, whole_number

FOLDER: Final = "sys/devices/system/cpu"
# A core below this share of the largest one's capacity is a small one. Two big cores of one phone
# differ by a sixth; small ones have half or less.
SMALL_CAPACITY: Final = 0.7
# The same by the highest clock, where no capacity is shown: favoured cores of one kind differ by a
# tenth.
SMALL_CLOCK: Final = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuCore:
    """One core: the numbers of its CPUs (threads), the lowest first, and whether it is small."""

    cpus: tuple[int, ...]
    is_small: bool = False


def cpu_cores(root: Path = SYSTEM_ROOT, usable: Iterable[int] | None = None) -> tuple[CpuCore, ...]:
    """The cores of the usable CPUs (None: those of this process), in the order of their numbers.

    Where the system shows no kinds, all are alike; where it shows no threads, every CPU is a core.
    """
    numbers = sorted(usable_cpu_numbers() if usable is None else usable)
    small = _small(root, numbers)
    threads: dict[str, list[int]] = {}
    for number in numbers:
        topology = root / FOLDER / f"cpu{number}/topology"
        shared = text_of(topology / "thread_siblings_list") or ""
        key = shared if shared and len(shared) <= 64 else f"alone {number}"
        threads.setdefault(key, []).append(number)
    return tuple(CpuCore(cpus=tuple(cpus), is_small=cpus[0] in small) for cpus in threads.values())


def _small(root: Path, numbers: list[int]) -> frozenset[int]:
    for name, share, most in (
        ("cpu_capacity", SMALL_CAPACITY, 1_000_000),
        ("cpufreq/cpuinfo_max_freq", SMALL_CLOCK, 20_000_000),
    ):
        found = {
            number: value
            for number in numbers
            if (value := whole_number(root / FOLDER / f"cpu{number}/{name}", low=1, high=most))
        }
        if found and len(found) == len(numbers):
            least = share * max(found.values())
            return frozenset(number for number, value in found.items() if value < least)
    return frozenset()

"""What `--power` means on a device: threads, cores, priority, and how much is guessed ahead.

low: on the small cores, where there are two kinds, with one thread each; else one thread. At a low
priority (nice 10). At most 4 guesses a frame, and no frame ahead of an outstanding answer.
balanced: half as many threads as there are big cores, or as CPUs that may be used where these are
fewer, rounded up; on the big cores, where there are two kinds. Guesses as full has them.
full: one thread for each CPU, anywhere, and every guess that pays.

Fewer threads at work draw fewer watts and leave a phone's or a board's heat within what its case
gives off. A guess that turns out wrong is a row computed for nothing. No setting changes a token.
Source: ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hwprofiles.sensors.cores import CpuCore
from optimizer.errors import PolicyError
from optimizer.policy.draft_length import MAX_ROUND_DRAFTS

POWER_SETTINGS: Final = ("low", "balanced", "full")
LOW_NICENESS: Final = 10
LOW_DRAFTS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftEffort:
    """The most guesses a frame, and whether frames may be sent ahead of outstanding answers."""

    max_drafts: int = MAX_ROUND_DRAFTS
    sends_ahead: bool = True


FULL_EFFORT: Final = DraftEffort()


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerChoice:
    """threads: of the kernels; None: one for each CPU that may be used. cpus: where the process
    stays; empty: anywhere. niceness: its priority is at most this much lower than usual."""

    threads: int | None = None
    cpus: tuple[int, ...] = ()
    niceness: int = 0
    drafts: DraftEffort = FULL_EFFORT


def power_choice(setting: str, cores: Sequence[CpuCore], *, num_usable: int) -> PowerChoice:
    """The choice for a process that may use these cores. num_usable: as many CPUs as its quota
    allows, at least 1; no choice has more threads. PolicyError for a setting that there is not."""
    if setting not in POWER_SETTINGS:
        raise PolicyError(f"power {setting!r}: choose one of {', '.join(POWER_SETTINGS)}")
    if setting == "full":
        return PowerChoice()
    small = [core for core in cores if core.is_small]
    big = [core for core in cores if not core.is_small]
    if setting == "low":
        return PowerChoice(
            threads=max(1, min(len(small), num_usable)),
            cpus=_cpus_of(small),
            niceness=LOW_NICENESS,
            drafts=DraftEffort(max_drafts=LOW_DRAFTS, sends_ahead=False),
        )
    return PowerChoice(
        threads=max(1, math.ceil(min(len(big), num_usable) / 2)),
        cpus=_cpus_of(big) if small else (),
    )


def _cpus_of(cores: Sequence[CpuCore]) -> tuple[int, ...]:
    return tuple(sorted(cpu for core in cores for cpu in core.cpus))

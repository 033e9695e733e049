"""Time a callable fairly: warm up, repeat, take the median, and say how much it varied."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

MIN_REPEATS = 5
PATIENCE = 5  # budgets, after which fewer repeats are enough
LONG_REPEATS = 3
MOST_SETTLING = 8  # measurements of a kernel that still becomes faster
STILL_FASTER = 0.97  # the next one takes less than this share of the last
PAUSE_S = 0.02  # of a step that waits for the other side: about a round trip
PAUSED_REPEATS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """`seconds` is the median of `num_repeats`; `spread` is (p90 - p10) / median."""

    seconds: float
    spread: float
    num_repeats: int


def measure(
    call: Callable[[], object],
    *,
    budget_s: float,
    min_repeats: int = MIN_REPEATS,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Call once to warm up, then again until `budget_s` is spent, `min_repeats` times at least;
    once `PATIENCE` times the budget is spent, three times are enough.

    The median, because a neighbour's burst of work must not move it; the spread, so that the
    reader sees the burst.
    """
    call()
    samples: list[float] = []
    start = clock()
    while (spent_s := clock() - start) < budget_s or len(samples) < min_repeats:
        if spent_s >= PATIENCE * budget_s and len(samples) >= LONG_REPEATS:
            break
        before = clock()
        call()
        samples.append(clock() - before)
    return timing_of(samples)


def measure_settled(
    call: Callable[[], object],
    *,
    budget_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """`measure`, again and again as long as `call` still becomes faster.

    The first calls of a process find cold caches, memory without pages and threads that sleep. What
    they take says nothing of how the machine changes from one moment to the next.
    """
    found = measure(call, budget_s=budget_s, clock=clock)
    for _ in range(MOST_SETTLING):
        last, found = found, measure(call, budget_s=budget_s, clock=clock)
        if found.seconds > STILL_FASTER * last.seconds:
            break
    return found


def measure_paused(
    call: Callable[[], object],
    *,
    pause_s: float = PAUSE_S,
    num_repeats: int = PAUSED_REPEATS,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Timing:
    """What `call` takes after a pause, as a step does that waits for the other side.

    In a pause other programs use the caches, cores slow down, and threads go to sleep.
    """
    samples = []
    for _ in range(num_repeats):
        sleep(pause_s)
        before = clock()
        call()
        samples.append(clock() - before)
    return timing_of(samples)


def timing_of(samples: Sequence[float]) -> Timing:
    """Median and spread of seconds that were measured elsewhere."""
    median = statistics.median(samples)
    low, high = np.quantile(samples, (0.1, 0.9))
    spread = float(high - low) / median if median > 0 else 0.0
    return Timing(seconds=median, spread=spread, num_repeats=len(samples))

"""What profiling an edge and a server share: effort, merging passes, warnings, memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from hwprofiles.profiler import system_facts
from hwprofiles.profiler.measured_backends import CodecKernels
from hwprofiles.profiler.timing import Timing, measure, measure_paused
from hwprofiles.profiles.device import CODEC_KERNEL, IN_NUMPY, CodecSpeed, Figure

MB = 1e6
NOISY_SPREAD, DRIFT = 0.25, 0.10
CODEC_WIDTHS = (576, 1024, 4096)
CODEC_ROWS = 32
CODEC_REPEATS = 5  # after a pause each

Progress = Callable[[float, str], None]


def part_of(progress: Progress, start: float, end: float) -> Progress:
    """Progress of a part that takes the whole's share from `start` to `end`."""
    return lambda share, what: progress(start + (end - start) * share, what)


def digits(value: float) -> float:
    """Four significant digits: more would be noise, and would make the files unreadable."""
    return float(f"{value:.4g}")


def figure(value: float, timing: Timing | None = None) -> Figure:
    """A measured figure with its spread."""
    spread = None if timing is None else digits(timing.spread)
    return Figure(value=digits(value), source="bench", spread=spread)


def pause_figure(call: Callable[[], object], *, budget_s: float) -> Figure:
    """Seconds that a step takes longer after a pause than right after itself. Not in proportion:
    the code around its kernels is what has left the caches."""
    hot, paused = measure(call, budget_s=budget_s), measure_paused(call)
    return figure(max(paused.seconds - hot.seconds, 1e-7), paused)


def net_s(timing: Timing, dispatch_s: float) -> float:
    """Seconds less dispatch; at least half, so that noise in tiny probes cannot turn the sign."""
    return max(timing.seconds - dispatch_s, timing.seconds / 2)


def median_of(values: Sequence[Any]) -> Any:
    """The like-shaped `values` merged: medians of numbers, part by part; anything else must be
    equal in all of them."""
    first = values[0]
    if is_dataclass(first) and not isinstance(first, type):
        merged = {
            item.name: median_of([getattr(value, item.name) for value in values])
            for item in fields(first)
        }
        return replace(first, **merged)
    if isinstance(first, tuple):
        return tuple(median_of(parts) for parts in zip(*values, strict=True))
    if isinstance(first, float):
        return statistics.median(values)
    if any(value != first for value in values):
        raise ValueError(f"cannot merge {values}")
    return first


def quality_warnings(references: Sequence[float], spreads: Sequence[float]) -> Iterator[str]:
    """What was wrong with the machine while it was measured, in words for a person.

    `references`: seconds of one kernel at the beginning, between passes and at the end.
    """
    middle = statistics.median(spreads)
    if middle > NOISY_SPREAD:
        yield (
            f"noisy machine: repeats of one kernel vary by {middle:.0%} (median); close other "
            "programs and measure again"
        )
    drift = references[-1] / references[0] - 1
    if abs(drift) > DRIFT:
        reason = "throttling or a busier machine" if drift > 0 else "a machine that was busy first"
        yield f"the reference kernel took {drift:+.0%} at the end: {reason}"
    elif max(references) > (1 + 2 * DRIFT) * min(references):
        yield "the reference kernel varied by more than a fifth on the way: a busy machine"
    if system_facts.runs_on_battery():
        yield "running on battery: rates may be lower than on mains"
    throttled = system_facts.throttle_events()
    if throttled:
        yield f"the processor has throttled {throttled} times since it was started: check cooling"


def codec_version(kernels: CodecKernels | None) -> dict[str, str]:
    """For a profile's `versions`: what the codec was timed in; empty where it was not timed."""
    return {} if kernels is None else {CODEC_KERNEL: kernels.runs_in}


def codec_warnings(speeds: Sequence[CodecSpeed], kernels: CodecKernels | None) -> Iterator[str]:
    """Words for a person where the codec was timed in numpy, with what its slowest row takes."""
    if kernels is None or kernels.runs_in != IN_NUMPY:
        return
    width = CODEC_WIDTHS[0]
    slowest = max(
        (
            speed.encode_fixed_s + width * speed.encode_s_per_element
            for speed in speeds
            if speed.hidden_size == width
        ),
        default=0.0,
    )
    yield (
        "the codec was timed in numpy, without its compiled kernel: encoding a row of "
        f"{width} takes up to {1e3 * slowest:.3g} ms; plans count it ('splitpoint doctor' says "
        "how to get the kernel)"
    )


def codec_speeds(kernels: CodecKernels, budget_s: float) -> tuple[CodecSpeed, ...]:
    """Each kind of codec at several widths: one row and many give the slope, and one row after a
    pause the fixed part. A frame is coded once a step, and that takes several times as long as
    coding the same row again at once."""
    found: dict[tuple[str, int], CodecSpeed] = {}
    for width in CODEC_WIDTHS:  # the tables of one width are made once for all kinds
        for kind in kernels.kinds:
            ones = kernels.coder(kind, hidden_size=width, num_rows=1)
            manys = kernels.coder(kind, hidden_size=width, num_rows=CODEC_ROWS)
            slopes, fixed = [], []
            for one, many in zip(ones, manys, strict=True):
                one_s, many_s = (measure(call, budget_s=budget_s).seconds for call in (one, many))
                slopes.append(max(many_s - one_s, 0.0) / (width * (CODEC_ROWS - 1)))
                first_s = measure_paused(one, num_repeats=CODEC_REPEATS).seconds
                fixed.append(max(first_s - slopes[-1] * width, 0.0))
            found[kind, width] = CodecSpeed(
                kind=kind,
                hidden_size=width,
                source="bench",
                encode_fixed_s=digits(fixed[0]),
                encode_s_per_element=digits(slopes[0]),
                decode_fixed_s=digits(fixed[1]),
                decode_s_per_element=digits(slopes[1]),
            )
    return tuple(found[kind, width] for kind in kernels.kinds for width in CODEC_WIDTHS)

"""Measure this machine with the kernels the edge runs, and write what was found as a profile.

A pass times matrices (one row by working set and matrix size; many rows), attention against
cache length, the operators in between and an empty step; the profile is the median of three
passes, because a machine drifts over seconds and repeats within one moment do not see that. Then
memory, storage and limits. A reference kernel is timed before and after every pass: if it moved,
the machine was busy or throttling, and the profile says so.
"""

from __future__ import annotations

import platform
import socket
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import psutil

from hwprofiles import kernel_runs, system_facts
from hwprofiles.device import (
    AttentionKernel,
    AttentionPoint,
    BatchCurve,
    BatchPoint,
    Compute,
    DecodeCurve,
    DecodePoint,
    DeviceProfile,
    Figure,
    Kernel,
    Memory,
    Overheads,
    Platform,
    Source,
)
from hwprofiles.kernel_graphs import weight_bytes
from hwprofiles.rates import attention_s, matrix_s
from hwprofiles.timing import Timing

MB = 1e6
SHAPES = ((256, 768), (512, 1536), (2048, 5632))
PRECISIONS: tuple[tuple[int, Compute], ...] = (
    (4, "int8"),
    (4, "fp32"),
    (8, "int8"),
    (8, "fp32"),
    (32, "fp32"),
)
ATTENTION = {"num_heads": 12, "num_kv_heads": 4, "head_dim": 64}
ATTENTION_LAYERS = (2, 8, 32)  # how many caches a single row walks
BATCH_SHAPES = ((576, 1536), (1024, 2816))  # of models of 0.1 and 1 billion weights
WIDTH, INNER, LAYERS = 768, 2048, 6  # of the whole-layer probe
NOISY_SPREAD, DRIFT = 0.25, 0.10

Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long to measure: passes over everything, seconds a point in each, and which working
    sets, rows and cache lengths."""

    num_passes: int
    budget_s: float
    working_sets: tuple[float, ...]
    rows: tuple[int, ...]
    attention: tuple[tuple[int, tuple[int, int]], ...]  # rows, (short, long) tokens in all


FULL = Effort(
    num_passes=3,
    budget_s=0.05,
    working_sets=(2 * MB, 8 * MB, 16 * MB, 32 * MB, 64 * MB, 128 * MB),
    rows=(2, 4, 8, 16, 32, 64, 128, 256, 512),
    attention=(
        (1, (16, 2000)),
        (8, (16, 1024)),
        (32, (32, 1024)),
        (128, (128, 1024)),
        (512, (512, 1536)),
    ),
)
QUICK = Effort(
    num_passes=1,
    budget_s=0.04,
    working_sets=(2 * MB, 8 * MB, 32 * MB, 128 * MB),
    rows=(2, 8, 32, 128, 512),
    attention=((1, (16, 1024)), (32, (32, 512)), (512, (512, 1024))),
)


def profile_device(
    *,
    name: str | None = None,
    quick: bool = False,
    progress: Progress = lambda _share, _what: None,
    command: str = "splitpoint profile device",
    storage_folder: Path | None = None,
) -> DeviceProfile:
    """Measure this machine: about a minute, or a quarter of that when `quick`.

    `progress` is called with the share done, 0 to 1, and what comes next.
    """
    effort = QUICK if quick else FULL
    spreads: list[float] = []
    progress(0.0, "number of threads")
    sweep = _thread_sweep(effort)
    threads = max(sweep)  # what the edge uses; a warning says when fewer are faster
    references = [_reference(effort, threads).seconds]
    passes = []
    for index in range(effort.num_passes):
        start, share = 0.02 + 0.9 * index / effort.num_passes, 0.9 / effort.num_passes

        def report(part: float, what: str, start: float = start, share: float = share) -> None:
            progress(start + share * part, what)

        passes.append(_one_pass(threads, effort, spreads, report))
        references.append(_reference(effort, threads).seconds)
    rates = median_of(passes)
    progress(0.93, "memory and storage")
    memory = _memory(effort)
    storage = system_facts.storage_read_rate(storage_folder, int((32 if quick else 128) * MB))
    progress(1.0, "done")
    return DeviceProfile(
        name=name or socket.gethostname().split(".")[0] or "this-machine",
        summary=f"{system_facts.processor_name()}, {system_facts.num_cores()} cores",
        roles=("edge",),
        measured=True,
        platform=Platform(
            processor=system_facts.processor_name(),
            num_cores=system_facts.num_cores(),
            num_threads=threads,
            operating_system=f"{platform.system()} {platform.release()} {platform.machine()}",
            engine="onnxruntime-cpu",
            versions={"python": platform.python_version(), **kernel_runs.versions()},
        ),
        memory=memory,
        kernels=rates.kernels,
        attention=rates.attention,
        overheads=rates.overheads,
        sources={
            "bench": Source(kind="measured", reference=command, date=date.today().isoformat())
        },
        storage_read_bytes_per_s=Figure(value=storage, source="bench") if storage else None,
        warnings=(*_thread_warnings(sweep), *_warnings(references, spreads)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What one pass measures. Passes are minutes of drift apart, repeats only milliseconds."""

    kernels: tuple[Kernel, ...]
    attention: tuple[AttentionKernel, ...]
    overheads: Overheads


def _one_pass(threads: int, effort: Effort, spreads: list[float], progress: Progress) -> Rates:
    kernels = []
    for index, (bits, compute) in enumerate(PRECISIONS):
        progress(0.8 * index / len(PRECISIONS), f"{bits}-bit weights, {compute} compute")
        kernels.append(_kernel(bits, compute, threads, effort, spreads))
    attention = []
    for index, kv_bits in enumerate((8, 16, 32)):
        progress(0.8 + 0.06 * index, f"attention, {kv_bits}-bit cache")
        attention.append(_attention(kv_bits, threads, effort, spreads))
    progress(0.98, "operators in between")
    overheads = _overheads(threads, effort, spreads, kernels, attention)
    return Rates(kernels=tuple(kernels), attention=tuple(attention), overheads=overheads)


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


def _thread_warnings(sweep: dict[int, float]) -> Iterator[str]:
    best = min(sweep, key=lambda count: sweep[count])
    if sweep[best] < 0.9 * sweep[max(sweep)]:
        yield (
            f"{best} threads take {sweep[best] / sweep[max(sweep)]:.0%} of the time of "
            f"{max(sweep)}: run the edge with {best}"
        )


def _warnings(references: list[float], spreads: list[float]) -> Iterator[str]:
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
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    if battery is not None and not battery.power_plugged:
        yield "running on battery: rates may be lower than on mains"


def _reference(effort: Effort, threads: int) -> Timing:
    return kernel_runs.time_matmul(
        width=512, inner=1536, num_pairs=8, num_rows=(1,), weight_bits=4, compute="int8",
        num_threads=threads, budget_s=2 * effort.budget_s,
    )[0]  # fmt: skip


def _thread_sweep(effort: Effort) -> dict[int, float]:
    """Seconds of single-row layers with 1, 2, 4 ... threads, up to all cores."""
    cores = system_facts.num_cores()
    counts = sorted({min(1 << power, cores) for power in range(cores.bit_length() + 1)})
    return {
        count: kernel_runs.time_decoder(
            **ATTENTION, width=WIDTH, inner=INNER, num_layers=LAYERS, weight_bits=4,
            compute="int8", cases=((1, 192),), num_threads=count, budget_s=2 * effort.budget_s,
        )[0].seconds
        for count in counts
    }  # fmt: skip


def _kernel(
    bits: int, compute: Compute, threads: int, effort: Effort, spreads: list[float]
) -> Kernel:
    def run(width: int, inner: int, pairs: int, rows: tuple[int, ...]) -> list[Timing]:
        timings = kernel_runs.time_matmul(
            width=width, inner=inner, num_pairs=pairs, num_rows=rows, weight_bits=bits,
            compute=compute, num_threads=threads, budget_s=effort.budget_s,
        )  # fmt: skip
        spreads.extend(timing.spread for timing in timings)
        return timings

    dispatch_s = run(64, 64, 32, (1,))[0].seconds / 64
    # Without an fp32-compute kernel for 8 bits, every call unpacks the whole matrix: far too slow
    # for large working sets, and one is enough to say so.
    slow = bits == 8 and compute == "fp32"
    decode = []
    for width, inner in SHAPES:
        matrix = weight_bytes(width * inner, bits)
        for working_set in effort.working_sets:
            pairs = int(working_set / (2 * matrix))
            if not 1 <= pairs <= 150 or (slow and working_set > 8 * MB):
                continue
            timing = run(width, inner, pairs, (1,))[0]
            walked = 2 * pairs * matrix
            decode.append(
                DecodePoint(
                    working_set_bytes=walked,
                    matrix_bytes=matrix,
                    bytes_per_s=_digits(walked / _net_s(timing, 2 * pairs * dispatch_s)),
                    spread=_digits(timing.spread),
                )
            )
    batch = [
        BatchPoint(
            num_rows=rows,
            num_weights=float(width * inner),
            flops_per_s=_digits(8 * rows * width * inner / _net_s(timing, 4 * dispatch_s)),
            spread=_digits(timing.spread),
        )
        for width, inner in BATCH_SHAPES
        for rows, timing in zip(effort.rows, run(width, inner, 2, effort.rows), strict=True)
    ]
    return Kernel(
        weight_bits=bits,
        compute=compute,
        dispatch_s=_digits(dispatch_s),
        source="bench",
        decode=DecodeCurve(source="bench", points=tuple(decode)),
        batch=BatchCurve(source="bench", points=tuple(batch)),
        lookup_s_per_element=_digits(_lookup_s_per_element(bits, threads, effort)),
    )


def _net_s(timing: Timing, dispatch_s: float) -> float:
    """Seconds less dispatch; at least half, so that noise in tiny probes cannot turn the sign."""
    return max(timing.seconds - dispatch_s, timing.seconds / 2)


def _lookup_s_per_element(bits: int, threads: int, effort: Effort) -> float:
    few, many = (
        kernel_runs.time_lookup(
            width=WIDTH, num_rows=rows, weight_bits=bits, num_threads=threads,
            budget_s=effort.budget_s,
        ).seconds
        for rows in (1, 128)
    )  # fmt: skip
    return max(0.0, many - few) / (127 * WIDTH)


def _attention(kv_bits: int, threads: int, effort: Effort, spreads: list[float]) -> AttentionKernel:
    """Two cache lengths for each number of rows give the fixed part and the slope."""
    width = ATTENTION["num_heads"] * ATTENTION["head_dim"]
    token_bytes = 2 * ATTENTION["num_kv_heads"] * ATTENTION["head_dim"] * kv_bits / 8
    points = []
    for rows, (short, long) in effort.attention:
        # A single row streams the caches of all layers, so where they lie matters; many rows
        # reuse what they have read.
        for num_layers in ATTENTION_LAYERS if rows == 1 else ATTENTION_LAYERS[:1]:
            near, far = kernel_runs.time_attention(
                **ATTENTION, num_layers=num_layers, kv_bits=kv_bits,
                cases=((rows, short), (rows, long)), num_threads=threads,
                budget_s=effort.budget_s,
            )  # fmt: skip
            spreads += [near.spread, far.spread]
            slope = max(far.seconds - near.seconds, 1e-9) / num_layers / (long - short)
            points.append(
                AttentionPoint(
                    num_rows=rows,
                    fixed_s=_digits(max(near.seconds / num_layers - slope * short, 0.0)),
                    flops_per_s=_digits(4 * rows * width / slope),
                    working_set_bytes=num_layers * long * token_bytes,
                    spread=_digits(max(near.spread, far.spread)),
                )
            )
    return AttentionKernel(kv_bits=kv_bits, source="bench", points=tuple(points), width=width)


def _overheads(
    threads: int,
    effort: Effort,
    spreads: list[float],
    kernels: Sequence[Kernel],
    attention: Sequence[AttentionKernel],
) -> Overheads:
    """What is left of whole layers once their matrices and attention are taken off, by the same
    formulas that predictions use: norms, activation, and waking threads between operators."""
    step = kernel_runs.time_step(num_threads=threads, budget_s=effort.budget_s)
    rows, tokens = 128, 192
    ones: list[float] = []
    manys: list[float] = []
    for kernel in kernels:
        if kernel.weight_bits <= 8 and kernel.compute == "fp32":
            continue
        one, many = kernel_runs.time_decoder(
            **ATTENTION, width=WIDTH, inner=INNER, num_layers=LAYERS,
            weight_bits=kernel.weight_bits, compute=kernel.compute,
            cases=((1, tokens), (rows, tokens)), num_threads=threads, budget_s=effort.budget_s,
        )  # fmt: skip
        spreads += [one.spread, many.spread]
        for found, timing, count in ((ones, one, 1), (manys, many, rows)):
            known = _known_layer_s(kernel, attention[-1], count, tokens)
            found.append((timing.seconds - step.seconds) / LAYERS - known)
    layer_s = max(1e-7, statistics.median(ones))
    rest_s = max(1e-7, statistics.median(manys) - layer_s)
    moved = 4 * (4 * WIDTH + 3 * INNER) * (rows - 1)
    return Overheads(
        step_s=_figure(step.seconds, step),
        layer_s=Figure(value=_digits(layer_s), source="bench"),
        elementwise_bytes_per_s=Figure(value=_digits(moved / rest_s), source="bench"),
    )


def _known_layer_s(kernel: Kernel, cache: AttentionKernel, num_rows: int, num_tokens: int) -> float:
    """Matrices and attention of one layer of the whole-layer probe."""
    heads = ATTENTION["num_heads"] * ATTENTION["head_dim"]
    packed = heads + 2 * ATTENTION["num_kv_heads"] * ATTENTION["head_dim"]
    sizes = [WIDTH * packed, heads * WIDTH, *[WIDTH * INNER] * 3]
    working_set = LAYERS * weight_bytes(sum(sizes), kernel.weight_bits)
    matrices = sum(
        matrix_s(
            kernel,
            num_weights=size,
            matrix_bytes=weight_bytes(size, kernel.weight_bits),
            num_rows=num_rows,
            working_set_bytes=working_set,
        )
        for size in sizes
    )
    return matrices + attention_s(
        cache,
        num_rows=num_rows,
        num_tokens=num_tokens,
        num_heads=ATTENTION["num_heads"],
        head_dim=ATTENTION["head_dim"],
        working_set_bytes=working_set,
    )


def _memory(effort: Effort) -> Memory:
    bandwidth, timing = system_facts.memory_bandwidth(int(128 * MB), effort.budget_s)
    return Memory(
        total_bytes=Figure(value=float(psutil.virtual_memory().total), source="bench"),
        usable_bytes=Figure(value=float(system_facts.usable_memory_bytes()), source="bench"),
        runtime_base_bytes=Figure(value=float(system_facts.process_base_bytes()), source="bench"),
        bandwidth_bytes_per_s=_figure(bandwidth, timing),
    )


def _figure(value: float, timing: Timing) -> Figure:
    return Figure(value=_digits(value), source="bench", spread=_digits(timing.spread))


def _digits(value: float) -> float:
    """Four significant digits: more would be noise, and would make the files unreadable."""
    return float(f"{value:.4g}")

"""Measure this machine with the kernels the edge runs, and write what was found as a profile.

The order of work: pick a number of threads, time matrices (one row by working set and matrix
size; many rows), attention against cache length, the operators in between, an empty step; then
memory, storage and limits. A reference kernel is timed at the start and again at the end: if it
drifted, the machine was busy or throttling, and the profile says so.
"""

from __future__ import annotations

import platform
import socket
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

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
from hwprofiles.timing import Timing

MB = 1e6
SHAPES = ((256, 768), (512, 1536), (2048, 5632))
PRECISIONS: tuple[tuple[int, Compute], ...] = (
    (4, "int8"),
    (4, "fp32"),
    (8, "int8"),
    (8, "fp32"),
    (16, "fp16"),
    (32, "fp32"),
)
ATTENTION = {"num_heads": 12, "num_kv_heads": 4, "head_dim": 64, "num_layers": 4}
WIDTH, INNER = 768, 2048  # of the many-row and elementwise probes
NOISY_SPREAD, DRIFT = 0.25, 0.10

Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long to measure: seconds a point, which working sets, rows and cache lengths."""

    budget_s: float
    working_sets: tuple[float, ...]
    rows: tuple[int, ...]
    attention: tuple[tuple[int, tuple[int, int]], ...]  # rows, (short, long) tokens in all


FULL = Effort(
    budget_s=0.15,
    working_sets=(2 * MB, 4 * MB, 8 * MB, 16 * MB, 32 * MB, 64 * MB, 128 * MB, 400 * MB),
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
    budget_s=0.05,
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
    threads = _best_threads(effort)
    first = _reference(effort, threads)
    kernels = []
    for index, (bits, compute) in enumerate(PRECISIONS):
        progress(0.05 + 0.7 * index / len(PRECISIONS), f"{bits}-bit weights, {compute} compute")
        kernels.append(_kernel(bits, compute, threads, effort, spreads))
    attention = []
    for index, kv_bits in enumerate((8, 32)):
        progress(0.75 + 0.08 * index, f"attention, {kv_bits}-bit cache")
        attention.append(_attention(kv_bits, threads, effort, spreads))
    progress(0.91, "operators in between, memory, storage")
    overheads = _overheads(threads, effort, spreads)
    memory = _memory(effort)
    storage = system_facts.storage_read_rate(storage_folder, int((32 if quick else 128) * MB))
    progress(0.98, "checking that the machine stayed as it was")
    last = _reference(effort, threads)
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
        kernels=tuple(kernels),
        attention=tuple(attention),
        overheads=overheads,
        sources={
            "bench": Source(kind="measured", reference=command, date=date.today().isoformat())
        },
        storage_read_bytes_per_s=Figure(value=storage, source="bench") if storage else None,
        warnings=tuple(_warnings(first, last, spreads)),
    )


def _warnings(first: Timing, last: Timing, spreads: list[float]) -> Iterator[str]:
    middle = statistics.median(spreads)
    if middle > NOISY_SPREAD:
        yield (
            f"noisy machine: repeats of one kernel vary by {middle:.0%} (median); close other "
            "programs and measure again"
        )
    drift = last.seconds / first.seconds - 1
    if abs(drift) > DRIFT:
        reason = "throttling or a busier machine" if drift > 0 else "a machine that was busy first"
        yield f"the reference kernel took {drift:+.0%} at the end: {reason}"
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    if battery is not None and not battery.power_plugged:
        yield "running on battery: rates may be lower than on mains"


def _reference(effort: Effort, threads: int) -> Timing:
    return kernel_runs.time_matmul(
        width=512, inner=1536, num_pairs=2, num_rows=(1,), weight_bits=4, compute="int8",
        num_threads=threads, budget_s=2 * effort.budget_s,
    )[0]  # fmt: skip


def _best_threads(effort: Effort) -> int:
    """The number of threads with the fastest single-row step, out of 1, 2, 4 ... all cores."""
    cores = system_facts.num_cores()
    counts = sorted({min(1 << power, cores) for power in range(cores.bit_length() + 1)})
    times = {count: _reference(effort, count).seconds for count in counts}
    return min(counts, key=lambda count: times[count])


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

    dispatch_s = run(32, 32, 32, (1,))[0].seconds / 64
    # Without an fp32-compute kernel for 8 bits, every call unpacks the whole matrix: far too slow
    # for large working sets, and one is enough to say so.
    slow = bits == 8 and compute == "fp32"
    decode = []
    for width, inner in SHAPES:
        matrix = weight_bytes(width * inner, bits)
        for working_set in effort.working_sets:
            pairs = int(working_set / (2 * matrix))
            if not 1 <= pairs <= 200 or (slow and working_set > 8 * MB):
                continue
            timing = run(width, inner, pairs, (1,))[0]
            walked = 2 * pairs * matrix
            decode.append(
                DecodePoint(
                    working_set_bytes=walked,
                    matrix_bytes=matrix,
                    bytes_per_s=_digits(walked / (timing.seconds - 2 * pairs * dispatch_s)),
                    spread=_digits(timing.spread),
                )
            )
    weights = 2 * 2 * WIDTH * INNER
    batch = [
        BatchPoint(
            num_rows=rows,
            flops_per_s=_digits(2 * rows * weights / (timing.seconds - 4 * dispatch_s)),
            spread=_digits(timing.spread),
        )
        for rows, timing in zip(effort.rows, run(WIDTH, INNER, 2, effort.rows), strict=True)
    ]
    return Kernel(
        weight_bits=bits,
        compute=compute,
        dispatch_s=_digits(dispatch_s),
        source="bench",
        decode=DecodeCurve(source="bench", points=tuple(decode)),
        batch=BatchCurve(source="bench", points=tuple(batch)),
    )


def _attention(kv_bits: int, threads: int, effort: Effort, spreads: list[float]) -> AttentionKernel:
    """Two cache lengths for each number of rows give the fixed part and the slope."""
    cases = tuple((rows, total) for rows, ends in effort.attention for total in ends)
    timings = kernel_runs.time_attention(
        **ATTENTION, kv_bits=kv_bits, cases=cases, num_threads=threads, budget_s=effort.budget_s
    )
    spreads.extend(timing.spread for timing in timings)
    points = []
    for index, (rows, (short, long)) in enumerate(effort.attention):
        near, far = (timings[2 * index + end].seconds / ATTENTION["num_layers"] for end in (0, 1))
        flops = 4 * rows * ATTENTION["num_heads"] * ATTENTION["head_dim"]
        slope = max(far - near, 1e-9) / (long - short)
        points.append(
            AttentionPoint(
                num_rows=rows,
                fixed_s=_digits(max(near - slope * short, 0.0)),
                flops_per_s=_digits(flops / slope),
                spread=_digits(max(timings[2 * index].spread, timings[2 * index + 1].spread)),
            )
        )
    width = ATTENTION["num_heads"] * ATTENTION["head_dim"]
    return AttentionKernel(kv_bits=kv_bits, source="bench", points=tuple(points), width=width)


def _overheads(threads: int, effort: Effort, spreads: list[float]) -> Overheads:
    layers, rows = 8, 512
    one, many = (
        kernel_runs.time_elementwise(
            width=WIDTH, inner=INNER, num_layers=layers, num_rows=count, num_threads=threads,
            budget_s=effort.budget_s,
        )
        for count in (1, rows)
    )  # fmt: skip
    step = kernel_runs.time_step(num_threads=threads, budget_s=effort.budget_s)
    spreads += [one.spread, many.spread, step.spread]
    moved = 4 * (4 * WIDTH + 3 * INNER) * rows * layers
    rate = moved / (many.seconds - one.seconds)
    return Overheads(
        step_s=_figure(step.seconds, step),
        layer_s=_figure(one.seconds / layers, one),
        elementwise_bytes_per_s=_figure(rate, many),
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

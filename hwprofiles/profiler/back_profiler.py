"""Measure this machine with the server's own engine, and write what was found as a profile.

A pass times the server's matrices (rows by working set and matrix size) and whole engines of a few
layers: batches of 1 to 64 sessions, prompts, and short against long caches. What whole layers
take beyond their matrices becomes the kernel's `layers`, so a prediction is exact where the engine
was measured. The profile is the median of the passes; a reference is timed around each, as
for the edge (`hwprofiles.profiler.front_profiler`).
"""

from __future__ import annotations

import platform
import socket
import statistics
from dataclasses import dataclass, replace
from datetime import date

from hwprofiles.machine_limits import total_memory_bytes, usable_cpus
from hwprofiles.profiler import system_facts
from hwprofiles.profiler.back_stack import (
    SHORT,
    BackEffort,
    StackProbe,
    back_bytes,
    timed,
)
from hwprofiles.profiler.error_spreads import measured_errors
from hwprofiles.profiler.measured_backends import BackKernels, CodecKernels, SessionLoad, StackShape
from hwprofiles.profiler.message_probe import message_s
from hwprofiles.profiler.parts import (
    MB,
    Progress,
    codec_speeds,
    codec_version,
    codec_warnings,
    digits,
    figure,
    median_of,
    net_s,
    pause_figure,
    quality_warnings,
)
from hwprofiles.profiler.timing import Timing, measure, measure_settled
from hwprofiles.profiles.device import (
    AttentionKernel,
    BatchCurve,
    BatchPoint,
    Compute,
    DecodeCurve,
    DecodePoint,
    DeviceProfile,
    Figure,
    Kernel,
    LayerPoint,
    Memory,
    Overheads,
    Platform,
    Source,
)

SHAPES = ((512, 1536), (1024, 2816))
LARGE_SHAPE = (2048, 5632)
STACKS = (
    StackShape(width=512, inner=1536, num_heads=8, num_kv_heads=4, head_dim=64, vocab_size=512),
    StackShape(width=1024, inner=2816, num_heads=16, num_kv_heads=4, head_dim=64, vocab_size=512),
)
TINY = StackShape(width=64, inner=128, num_heads=1, num_kv_heads=1, head_dim=64, vocab_size=64)
FEW = 8  # sessions; with many, threads are woken once a step, which is no session's
SAMPLED = 32_768


FULL = BackEffort(
    num_passes=3,
    budget_s=0.025,
    working_sets=(6 * MB, 32 * MB, 192 * MB),
    rows=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    large_rows=(1, 2, 8, 64),
    sessions=(1, 2, 4, 8, 16, 32, 64),
    prompts=(16, 32, 64, 128),
    layers=6,
    deep_bytes=100 * MB,
    long=1024,
)
QUICK = BackEffort(
    num_passes=1,
    budget_s=0.015,
    working_sets=(8 * MB, 32 * MB, 128 * MB),
    rows=(1, 2, 4, 16, 64, 128),
    large_rows=(1, 2, 16),
    sessions=(1, 4, 16, 64),
    prompts=(32, 128),
    layers=4,
    deep_bytes=100 * MB,
    long=512,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackRates:
    """What one pass measures."""

    kernels: tuple[Kernel, ...]
    attention: tuple[AttentionKernel, ...]
    step_s: float
    session_s: float


def profile_server(
    kernels: BackKernels,
    *,
    name: str | None = None,
    quick: bool = False,
    progress: Progress = lambda _share, _what: None,
    command: str = "splitpoint profile device --role cloud",
    codec: CodecKernels | None = None,
    base: system_facts.ProcessBase | None = None,
) -> DeviceProfile:
    """Measure this machine as a server: about 90 s, or a quarter of that when `quick`.

    `progress` is called with the share done, 0 to 1, and what comes next. base: of the kernels'
    `base_code`; None: it is measured too.
    """
    effort = QUICK if quick else FULL
    spreads: list[float] = []
    progress(0.0, "reference")
    reference = kernels.matrices(width=512, inner=1536, num_pairs=8, weight_bits=8)(1)
    references = [measure_settled(reference, budget_s=10 * effort.budget_s).seconds]
    passes = []
    for index in range(effort.num_passes):
        start, share = 0.01 + 0.9 * index / effort.num_passes, 0.9 / effort.num_passes

        def report(part: float, what: str, start: float = start, share: float = share) -> None:
            progress(start + share * part, what)

        passes.append(_one_pass(kernels, effort, spreads, report))
        references.append(measure_settled(reference, budget_s=10 * effort.budget_s).seconds)
    rates: BackRates = median_of(passes)
    progress(0.92, "sampling, messages, codec")
    sampled = measure(kernels.sample(SAMPLED), budget_s=effort.budget_s)
    message = message_s(budget_s=4 * effort.budget_s)
    speeds = () if codec is None else codec_speeds(codec, effort.budget_s / 2)
    overheads = replace(_overheads(rates, sampled, message), pause_s=_pause_s(kernels, effort))
    progress(0.97, "memory")
    if base is None:
        with system_facts.begin_process_base(kernels.base_code()) as child:
            base = child.result()
    memory = _memory(kernels, effort, base)
    progress(1.0, "done")
    hardware = kernels.accelerator or system_facts.processor_name()
    return DeviceProfile(
        name=name or socket.gethostname().split(".")[0] or "this-machine",
        summary=f"{hardware}, {usable_cpus()} cores",
        roles=("cloud",),
        measured=True,
        platform=Platform(
            processor=system_facts.processor_name(),
            num_cores=usable_cpus(),
            num_threads=kernels.num_threads,
            operating_system=f"{platform.system()} {platform.release()} {platform.machine()}",
            engine=kernels.engine,
            accelerator=kernels.accelerator,
            versions={
                "python": platform.python_version(),
                **kernels.versions(),
                **codec_version(codec),
            },
        ),
        memory=memory,
        kernels=rates.kernels,
        attention=rates.attention,
        overheads=overheads,
        codec=speeds,
        sources={
            "bench": Source(kind="measured", reference=command, date=date.today().isoformat())
        },
        errors=measured_errors(rates.kernels, overheads, references),
        warnings=(
            *codec_warnings(speeds, codec),
            *quality_warnings(references, spreads),
        ),
    )


def _one_pass(
    kernels: BackKernels, effort: BackEffort, spreads: list[float], progress: Progress
) -> BackRates:
    progress(0.0, "steps without work")
    step_s, session_s = _bookkeeping(kernels, effort, spreads)
    found = []
    attention: list[AttentionKernel] = []
    count = len(kernels.weight_bits)
    for index, bits in enumerate(kernels.weight_bits):
        progress((index + 0.1) / count, f"{bits}-bit weights: matrices")
        kernel = _kernel(kernels, bits, effort, spreads)
        progress((index + 0.6) / count, f"{bits}-bit weights: whole layers")
        points: list[LayerPoint] = []
        for shape in reversed(STACKS):
            stack = StackProbe(kernels, shape, bits, kernel, effort, spreads)
            if not attention:
                attention.append(stack.attention(kernels.kv_bits))
            points = stack.layers(attention[0]) + points
        found.append(replace(kernel, layers=tuple(points)))
    return BackRates(
        kernels=tuple(found), attention=tuple(attention), step_s=step_s, session_s=session_s
    )


def _bookkeeping(
    kernels: BackKernels, effort: BackEffort, spreads: list[float]
) -> tuple[float, float]:
    """Seconds of a step and of each session in it that are not the layers': two depths of an engine
    too narrow for its matrices to matter, T(L) = base + L layer, with few sessions and many."""
    bits = kernels.weight_bits[0]
    shallow = kernels.stack(TINY, num_layers=1, weight_bits=bits)
    deep = kernels.stack(TINY, num_layers=3, weight_bits=bits)
    bases = []
    counts = (1, FEW)
    for count in counts:
        loads = [SessionLoad(1, SHORT)] * count
        one = timed(shallow.step(loads), effort, spreads).seconds
        three = timed(deep.step(loads), effort, spreads).seconds
        bases.append(one - (three - one) / 2)
    session_s = max((bases[1] - bases[0]) / (counts[1] - counts[0]), 1e-8)
    return max(bases[0] - counts[0] * session_s, 1e-7), session_s


def _kernel(
    kernels: BackKernels, bits: int, effort: BackEffort, spreads: list[float]
) -> Kernel:  # fmt: skip
    tiny = kernels.matrices(width=64, inner=64, num_pairs=32, weight_bits=bits)(1)
    dispatch_s = measure(tiny, budget_s=effort.budget_s).seconds / 64
    decode: list[DecodePoint] = []
    batch: list[BatchPoint] = []
    for width, inner in (*SHAPES, LARGE_SHAPE):
        weights = width * inner
        matrix = back_bytes(weights, (width + inner) / 2, bits)
        is_large = (width, inner) == LARGE_SHAPE
        for working_set in effort.working_sets[-1:] if is_large else effort.working_sets:
            pairs = max(1, round(working_set / (2 * matrix)))
            walked = digits(2 * pairs * matrix)
            if decode and (decode[-1].matrix_bytes, decode[-1].working_set_bytes) == (
                matrix, walked,
            ):  # fmt: skip
                continue
            # Many rows of a large set would take seconds: reading is long hidden by then.
            rows = effort.large_rows if is_large else effort.rows
            rows = tuple(n for n in rows if n <= 64 or working_set == effort.working_sets[0])
            with_rows = kernels.matrices(
                width=width, inner=inner, num_pairs=pairs, weight_bits=bits
            )
            for num_rows in rows:
                timing = timed(with_rows(num_rows), effort, spreads)
                net = net_s(timing, 2 * pairs * dispatch_s)
                if num_rows == 1:
                    decode.append(
                        DecodePoint(
                            working_set_bytes=walked,
                            matrix_bytes=matrix,
                            bytes_per_s=digits(2 * pairs * matrix / net),
                            spread=digits(timing.spread),
                        )
                    )
                    continue
                batch.append(
                    BatchPoint(
                        num_rows=num_rows,
                        num_weights=float(weights),
                        working_set_bytes=walked,
                        flops_per_s=digits(2 * num_rows * weights * 2 * pairs / net),
                        spread=digits(timing.spread),
                    )
                )
    return Kernel(
        weight_bits=bits,
        compute=_compute(kernels, bits),
        dispatch_s=digits(dispatch_s),
        source="bench",
        decode=DecodeCurve(source="bench", points=tuple(decode)),
        batch=BatchCurve(source="bench", points=tuple(batch)),
    )


def _compute(kernels: BackKernels, bits: int) -> Compute:
    if bits == 8 and kernels.runs_int8:
        return "int8"
    return "fp32" if bits == 32 or kernels.engine == "torch-cpu" else "bf16"


def _overheads(rates: BackRates, sampled: Timing, message: Timing | None) -> Overheads:
    """The layer figures are for people and for kernels without whole layers: medians over the
    precisions at the wider stack."""
    width, inner = STACKS[-1].width, STACKS[-1].inner
    alone = [
        [p for p in kernel.layers if p.width == width and p.num_sessions == 1]
        for kernel in rates.kernels
    ]
    rest_s = statistics.median(points[-1].seconds - points[0].seconds for points in alone)
    moved = 4 * (4 * width + 3 * inner) * (alone[0][-1].num_rows - 1)
    return Overheads(
        step_s=figure(rates.step_s),
        layer_s=figure(max(1e-7, statistics.median(points[0].seconds for points in alone))),
        elementwise_bytes_per_s=figure(moved / max(1e-7, rest_s)),
        session_s=figure(rates.session_s),
        sample_s_per_logit=figure(sampled.seconds / SAMPLED, sampled),
        message_s=None if message is None else figure(message.seconds / 2, message),
    )


def _pause_s(kernels: BackKernels, effort: BackEffort) -> Figure:
    """Of a session's step and the drawing of its token. Its weights are few: a real back's lie
    beyond the caches, with a pause or without."""
    stack = kernels.stack(TINY, num_layers=effort.layers, weight_bits=kernels.weight_bits[0])
    step, draw = stack.step([SessionLoad(1, SHORT)]), kernels.sample(SAMPLED)
    return pause_figure(lambda: (step(), draw()), budget_s=4 * effort.budget_s)


def _memory(kernels: BackKernels, effort: BackEffort, base: system_facts.ProcessBase) -> Memory:
    """Of the accelerator where it has its own, else of the host."""
    size = int(128 * MB)
    copied = measure(kernels.copy(size), budget_s=effort.budget_s)
    own = kernels.memory_bytes()
    total = total_memory_bytes() if own is None else own[0]
    usable = system_facts.usable_memory_bytes() if own is None else own[1]
    return Memory(
        total_bytes=Figure(value=float(total), source="bench"),
        usable_bytes=Figure(value=float(usable), source="bench"),
        runtime_base_bytes=Figure(value=float(base.num_bytes), source="bench"),
        bandwidth_bytes_per_s=figure(2 * size / copied.seconds, copied),
    )

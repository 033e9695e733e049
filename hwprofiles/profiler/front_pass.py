"""One pass over the edge's kernels: matrices, attention and whole layers, into rates."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from hwprofiles.errors import UnknownKernelError
from hwprofiles.profiler import front_stack, kernel_runs
from hwprofiles.profiler.front_stack import STACK_TOKENS, Effort, is_exact, with_layers
from hwprofiles.profiler.half_probe import computes_halves
from hwprofiles.profiler.kernel_graphs import DecoderLayers, weight_bytes
from hwprofiles.profiler.kernel_runs import KernelSettings
from hwprofiles.profiler.message_probe import message_s
from hwprofiles.profiler.parts import MB, Progress, digits, figure, net_s, pause_figure
from hwprofiles.profiler.timing import Timing
from hwprofiles.profiles.device import (
    AttentionKernel,
    AttentionPoint,
    BatchCurve,
    BatchPoint,
    Compute,
    DecodeCurve,
    DecodePoint,
    Figure,
    Kernel,
    Overheads,
)

SHAPES = ((256, 768), (512, 1536), (2048, 5632))
PRECISIONS: tuple[tuple[int, Compute], ...] = (
    (4, "int8"),
    (4, "fp32"),
    (8, "int8"),
    (8, "fp32"),
    (32, "fp32"),
)
HALVES: tuple[int, Compute] = (16, "fp16")  # where they are computed as such
ATTENTION = {"num_heads": 12, "num_kv_heads": 4, "head_dim": 64}
ATTENTION_LAYERS = (2, 8, 32)  # how many caches a single row walks
# A step's weights push the caches out of the processor's: a set that is read from memory each time.
BEYOND_CACHE_BYTES = 1.6e8
BATCH_SHAPES = ((576, 1536), (1024, 2816))  # of models of 0.1 and 1 billion weights
BATCH_SETS = (1.5e7, 6e7)  # within a cache, and beyond it
BEYOND_ROWS = 32  # more rows than this hide the reading of weights from beyond a cache
LOOKUP_WIDTH = 768
# Of the thread sweep, of pauses and of the sustained load.
TYPICAL_LAYERS = DecoderLayers(
    **ATTENTION, width=768, inner=2048, num_layers=6, weight_bits=4, compute="int8"
)
TYPICAL_STEP = ((1, STACK_TOKENS),)  # one row, tokens in all


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What one pass measures. Passes are minutes of drift apart, repeats only milliseconds."""

    kernels: tuple[Kernel, ...]
    attention: tuple[AttentionKernel, ...]
    overheads: Overheads


def one_pass(
    settings: KernelSettings, effort: Effort, spreads: list[float], progress: Progress
) -> Rates:
    """Measure every kernel of the edge once: matrices, attention, whole layers."""
    kernels = []
    precisions = (*PRECISIONS, *([HALVES] if computes_halves(settings.provider) else []))
    for index, (bits, compute) in enumerate(precisions):
        progress(0.7 * index / len(precisions), f"{bits}-bit weights, {compute} compute")
        kernels.append(_kernel(bits, compute, settings, effort, spreads))
    attention = []
    for index, kv_bits in enumerate((8, 16, 32)):
        progress(0.7 + 0.06 * index, f"attention, {kv_bits}-bit cache")
        with suppress(UnknownKernelError):  # an older ONNX Runtime has no cache of 8 bits
            attention.append(_attention(kv_bits, settings, effort, spreads))
    progress(0.9, "whole layers")
    step = kernel_runs.time_step(settings=settings, budget_s=effort.budget_s)
    kernels = [
        with_layers(kernel, attention[-1], step.seconds, settings, effort, spreads)
        for kernel in kernels
    ]
    message = message_s(budget_s=4 * effort.budget_s)
    overheads = replace(_overheads(step, kernels, message), pause_s=_pause_s(settings, effort))
    return Rates(kernels=tuple(kernels), attention=tuple(attention), overheads=overheads)


def _pause_s(settings: KernelSettings, effort: Effort) -> Figure:
    """Of a row through a few layers, with what a step does around them."""
    (layers,) = kernel_runs.decoder_calls(TYPICAL_LAYERS, cases=TYPICAL_STEP, settings=settings)
    around = kernel_runs.step_call(settings)
    return pause_figure(lambda: (around(), layers()), budget_s=4 * effort.budget_s)


Run = Callable[[int, int, int, tuple[int, ...]], list[Timing]]


def _kernel(
    bits: int, compute: Compute, settings: KernelSettings, effort: Effort, spreads: list[float]
) -> Kernel:
    def run(width: int, inner: int, pairs: int, rows: tuple[int, ...]) -> list[Timing]:
        timings = kernel_runs.time_matmul(
            width=width, inner=inner, num_pairs=pairs, num_rows=rows, weight_bits=bits,
            compute=compute, settings=settings, budget_s=effort.budget_s,
        )  # fmt: skip
        spreads.extend(timing.spread for timing in timings)
        return timings

    dispatch_s = run(64, 64, 32, (1,))[0].seconds / 64
    # Without an fp32-compute kernel for 8 bits, every call unpacks the whole matrix: far too slow
    # for large working sets, and one is enough to say so.
    slow = bits == 8 and compute == "fp32"
    shapes, batch_shapes = list(SHAPES), list(BATCH_SHAPES)
    if effort.brief_exact and is_exact(bits, compute):
        shapes, batch_shapes = shapes[1:2], batch_shapes[:1]
    decode = []
    for width, inner in shapes:
        matrix = weight_bytes(width * inner, bits)
        for working_set in effort.working_sets:
            pairs = int(working_set / (2 * matrix))
            # The largest set is of many fp32 layers; its graph takes longer to make than to time.
            largest = working_set > 200 * MB and (bits < 32 or (width, inner) != SHAPES[1])
            if not 1 <= pairs <= 150 or (slow and working_set > 8 * MB) or largest:
                continue
            timing = run(width, inner, pairs, (1,))[0]
            walked = 2 * pairs * matrix
            decode.append(
                DecodePoint(
                    working_set_bytes=walked,
                    matrix_bytes=matrix,
                    bytes_per_s=digits(walked / net_s(timing, 2 * pairs * dispatch_s)),
                    spread=digits(timing.spread),
                )
            )
    batch = [
        point
        for width, inner in batch_shapes
        for point in _batch_points(width, inner, bits, slow, dispatch_s, run, effort)
    ]
    return Kernel(
        weight_bits=bits,
        compute=compute,
        dispatch_s=digits(dispatch_s),
        source="bench",
        decode=DecodeCurve(source="bench", points=tuple(decode)),
        batch=BatchCurve(source="bench", points=tuple(batch)),
        lookup_s_per_element=digits(_lookup_s_per_element(bits, settings, effort)),
    )


def _batch_points(
    width: int, inner: int, bits: int, slow: bool, dispatch_s: float, run: Run, effort: Effort
) -> list[BatchPoint]:
    """Many rows in matrices of one shape, within each working set.

    Beyond `BEYOND_ROWS` rows arithmetic hides reading, so the small set's rate holds for both.
    """
    matrix = weight_bytes(width * inner, bits)
    few = tuple(rows for rows in effort.rows if rows <= BEYOND_ROWS)
    points: list[BatchPoint] = []
    hidden: list[BatchPoint] = []
    for working_set in BATCH_SETS[:1] if slow else BATCH_SETS:
        pairs = max(1, min(round(working_set / (2 * matrix)), 150))
        counts = effort.rows if not points else few
        timings = run(width, inner, 2, counts[len(few) :]) if not points else []
        timings = run(width, inner, pairs, few) + timings
        found = [
            BatchPoint(
                num_rows=rows,
                num_weights=float(width * inner),
                working_set_bytes=digits(2 * pairs * matrix),
                flops_per_s=digits(
                    2 * rows * width * inner * 2 * count / net_s(timing, 2 * count * dispatch_s)
                ),
                spread=digits(timing.spread),
            )
            for rows, timing in zip(counts, timings, strict=True)
            for count in (pairs if rows <= BEYOND_ROWS else 2,)
        ]
        points += found
        if hidden:
            size = found[0].working_set_bytes
            points += [replace(point, working_set_bytes=size) for point in hidden]
        hidden = hidden or found[len(few) :]
    return points


def _lookup_s_per_element(bits: int, settings: KernelSettings, effort: Effort) -> float:
    few, many = (
        kernel_runs.time_lookup(
            width=LOOKUP_WIDTH, num_rows=rows, weight_bits=bits, settings=settings,
            budget_s=effort.budget_s,
        ).seconds
        for rows in (1, 128)
    )  # fmt: skip
    return max(0.0, many - few) / (127 * LOOKUP_WIDTH)


def _attention(
    kv_bits: int, settings: KernelSettings, effort: Effort, spreads: list[float]
) -> AttentionKernel:
    """Two cache lengths for each number of rows give the fixed part and the slope."""
    width = ATTENTION["num_heads"] * ATTENTION["head_dim"]
    token_bytes = 2 * ATTENTION["num_kv_heads"] * ATTENTION["head_dim"] * kv_bits / 8
    points = []
    for rows, (short, long) in effort.attention:
        # A single row streams the caches of all layers, so where they lie matters; many rows
        # reuse what they have read.
        beyond = max(ATTENTION_LAYERS[-1] + 1, round(BEYOND_CACHE_BYTES / (long * token_bytes)))
        for num_layers in (*ATTENTION_LAYERS, beyond) if rows == 1 else ATTENTION_LAYERS[:1]:
            near, far = kernel_runs.time_attention(
                **ATTENTION, num_layers=num_layers, kv_bits=kv_bits,
                cases=((rows, short), (rows, long)), settings=settings,
                budget_s=effort.budget_s,
            )  # fmt: skip
            spreads += [near.spread, far.spread]
            slope = max(far.seconds - near.seconds, 1e-9) / num_layers / (long - short)
            points.append(
                AttentionPoint(
                    num_rows=rows,
                    fixed_s=digits(max(near.seconds / num_layers - slope * short, 0.0)),
                    flops_per_s=digits(4 * rows * width / slope),
                    working_set_bytes=num_layers * long * token_bytes,
                    spread=digits(max(near.spread, far.spread)),
                )
            )
    return AttentionKernel(
        kv_bits=kv_bits,
        source="bench",
        points=tuple(points),
        width=width,
        packed_width=width + 2 * ATTENTION["num_kv_heads"] * ATTENTION["head_dim"],
    )


def _overheads(step: Timing, kernels: Sequence[Kernel], message: Timing | None) -> Overheads:
    """Overheads for kernels without whole layers, and as one figure for people: medians over the
    precisions at the wider stack."""
    width, inner = front_stack.STACKS[-1][:2]
    measured = [[p for p in kernel.layers if p.width == width] for kernel in kernels]
    points = [found for found in measured if found]
    layer_s = max(1e-7, statistics.median(found[0].seconds for found in points))
    rest_s = statistics.median(found[-1].seconds - found[0].seconds for found in points)
    moved = 4 * (4 * width + 3 * inner) * (points[0][-1].num_rows - 1)
    return Overheads(
        step_s=figure(step.seconds, step),
        layer_s=figure(layer_s),
        elementwise_bytes_per_s=figure(moved / max(1e-7, rest_s)),
        message_s=None if message is None else figure(message.seconds / 2, message),
    )

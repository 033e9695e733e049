"""Whole layers of the front, timed: what a layer takes beyond its matrices and its attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hwprofiles.profiler import kernel_runs
from hwprofiles.profiler.kernel_graphs import DecoderLayers, weight_bytes
from hwprofiles.profiler.kernel_runs import KernelSettings
from hwprofiles.profiler.parts import digits
from hwprofiles.profiles.device import AttentionKernel, Compute, Kernel, LayerPoint
from hwprofiles.profiles.rates import attention_s, matrix_s

# Whole layers: width, inner, heads, KV heads.
STACKS = ((512, 1536, 8, 4), (1024, 2816, 16, 4))
STACK_SETS = (1.2e7, 8e7)  # bytes of all layers: within a cache, and beyond it
STACK_FEW_ROWS = 8  # of more rows, the rest is what it is within a cache
STACK_TOKENS = 192


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long to measure: passes over everything, seconds a point in each, and which working
    sets, rows and cache lengths. brief_exact: 4- and 8-bit weights with float32 products, which
    only `plan --exact-front` asks for, are measured in one shape, and not as whole layers."""

    num_passes: int
    budget_s: float
    working_sets: tuple[float, ...]
    rows: tuple[int, ...]
    brief_exact: bool
    stack_rows: tuple[int, ...]
    attention: tuple[tuple[int, tuple[int, int]], ...]  # rows, (short, long) tokens in all


def is_exact(bits: int, compute: Compute) -> bool:
    """Whether quantized weights are multiplied in float32, as `plan --exact-front` asks for."""
    return bits < 16 and compute == "fp32"


def with_layers(
    kernel: Kernel, cache: AttentionKernel, step_s: float, settings: KernelSettings, effort: Effort,
    spreads: list[float],
) -> Kernel:  # fmt: skip
    """The kernel with what is left of whole layers once its matrices and attention are taken off,
    by the same formulas that predictions use."""
    if is_exact(kernel.weight_bits, kernel.compute) and (
        kernel.weight_bits == 8 or effort.brief_exact
    ):
        return kernel
    points: list[LayerPoint] = []
    for width, inner, num_heads, num_kv_heads in STACKS:
        packed = 64 * (num_heads + 2 * num_kv_heads)
        sizes = [width * packed, 64 * num_heads * width, *[width * inner] * 3]
        layer_bytes = weight_bytes(sum(sizes), kernel.weight_bits)
        hidden: list[LayerPoint] = []
        for num_layers in sorted({max(2, round(size / layer_bytes)) for size in STACK_SETS}):
            layers = DecoderLayers(
                width=width,
                inner=inner,
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                head_dim=64,
                num_layers=num_layers,
                weight_bits=kernel.weight_bits,
                compute=kernel.compute,
            )
            counts = [rows for rows in effort.stack_rows if rows <= STACK_FEW_ROWS or not hidden]
            timings = kernel_runs.time_decoder(
                layers,
                cases=tuple((rows, STACK_TOKENS) for rows in counts),
                settings=settings,
                budget_s=effort.budget_s,
            )
            spreads += [timing.spread for timing in timings]
            working_set = digits(num_layers * layer_bytes)
            found = [
                LayerPoint(
                    width=width,
                    working_set_bytes=working_set,
                    num_sessions=1,
                    num_rows=rows,
                    seconds=digits(
                        (timing.seconds - step_s) / num_layers
                        - _known_layer_s(
                            kernel, cache, sizes, num_layers, (num_heads, num_kv_heads), rows
                        )
                    ),
                )
                for rows, timing in zip(counts, timings, strict=True)
            ]
            points += found
            points += [replace(point, working_set_bytes=working_set) for point in hidden]
            hidden = hidden or [point for point in found if point.num_rows > STACK_FEW_ROWS]
    return replace(kernel, layers=tuple(points))


def _known_layer_s(
    kernel: Kernel,
    cache: AttentionKernel,
    sizes: Sequence[int],
    num_layers: int,
    heads: tuple[int, int],
    num_rows: int,
) -> float:
    """Matrices and attention of one layer of a whole-layer probe. heads: and those of the cache."""
    working_set = num_layers * weight_bytes(sum(sizes), kernel.weight_bits)
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
    attended = attention_s(
        cache,
        num_rows=num_rows,
        num_tokens=STACK_TOKENS,
        num_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=64,
        working_set_bytes=working_set,
    )
    return float(matrices + attended)

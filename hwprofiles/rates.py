"""Read rates off a device profile's curves: between measured points, and held beyond them.

Interpolation is linear in seconds a byte (or seconds a FLOP) over the logarithm of the size: time
adds up, rates do not, and caches fill by ratios.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from hwprofiles.device import AttentionKernel, BatchCurve, DecodeCurve, Kernel


def decode_s_per_byte(
    curve: DecodeCurve, *, working_set_bytes: float, matrix_bytes: float
) -> float:
    """Seconds a weight byte of one-row work in matrices of this size, within this working set."""
    sizes, values = [], []
    for size, group in groupby(curve.points, key=lambda point: point.matrix_bytes):
        points = list(group)
        sets = [point.working_set_bytes for point in points]
        slowness = [1 / point.bytes_per_s for point in points]
        sizes.append(size)
        values.append(interpolate(sets, slowness, working_set_bytes))
    return interpolate(sizes, values, matrix_bytes) / curve.efficiency


def batch_s_per_flop(curve: BatchCurve, *, num_rows: int, num_weights: float) -> float:
    """Seconds a floating-point operation of `num_rows` rows at once, in matrices of this size."""
    sizes, values = [], []
    for size, group in groupby(curve.points, key=lambda point: point.num_weights):
        points = list(group)
        rows = [point.num_rows for point in points]
        sizes.append(size)
        values.append(interpolate(rows, [1 / point.flops_per_s for point in points], num_rows))
    return interpolate(sizes, values, num_weights) / curve.efficiency


def matrix_s(
    kernel: Kernel,
    *,
    num_weights: int,
    matrix_bytes: float,
    num_rows: int,
    working_set_bytes: float,
) -> float:
    """Seconds of one matrix: dispatch, and the slower of walking its bytes and doing its work."""
    seconds = matrix_bytes * decode_s_per_byte(
        kernel.decode, working_set_bytes=working_set_bytes, matrix_bytes=matrix_bytes
    )
    if num_rows > 1:
        slowness = batch_s_per_flop(kernel.batch, num_rows=num_rows, num_weights=num_weights)
        seconds = max(seconds, 2 * num_rows * num_weights * slowness)
    return kernel.dispatch_s + seconds


def attention_s(
    kernel: AttentionKernel,
    *,
    num_rows: int,
    num_tokens: int,
    num_heads: int,
    head_dim: int,
    working_set_bytes: float,
) -> float:
    """Seconds of one layer's attention of `num_rows` new tokens over `num_tokens` in all, in a
    step that walks `working_set_bytes`."""
    width = num_heads * head_dim
    rows, slownesses, fixed_parts = [], [], []
    for count, group in groupby(kernel.points, key=lambda point: point.num_rows):
        points = list(group)
        sets = [point.working_set_bytes for point in points]
        rows.append(count)
        slownesses.append(
            interpolate(sets, [1 / point.flops_per_s for point in points], working_set_bytes)
        )
        fixed_parts.append(
            interpolate(sets, [point.fixed_s / count for point in points], working_set_bytes)
        )
    slowness = interpolate(rows, slownesses, num_rows)
    fixed = interpolate(rows, fixed_parts, num_rows) * num_rows
    if kernel.width and num_rows > 1:
        fixed *= width / kernel.width
    return fixed + 4 * num_rows * width * num_tokens * slowness / kernel.efficiency


def interpolate(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """Piecewise linear in log x through rising points; held constant outside them."""
    if x <= xs[0]:
        return ys[0]
    for left in range(len(xs) - 1):
        if x < xs[left + 1]:
            low, high = xs[left], xs[left + 1]
            share = math.log(x / low) / math.log(high / low) if low > 0 else x / high
            return ys[left] + share * (ys[left + 1] - ys[left])
    return ys[-1]

"""`hwprofiles.profiles.rates` over arrays of working sets: the same interpolation, many points at
once.

The scalar functions are the definition; a test holds these to them. Only what varies over a
search is an array here: the working set, and the tokens that attention walks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt

from hwprofiles.profiles.device import AttentionKernel, BatchCurve, DecodeCurve, Kernel
from hwprofiles.profiles.rates import interpolate, rows_line

Floats = npt.NDArray[np.float64]


def interpolate_at(xs: Sequence[float], ys: Sequence[float], x: Floats) -> Floats:
    """`interpolate` at every element of x: linear in log x, held constant outside; a first point
    at 0 has no logarithm, so up to the second one x itself is the measure."""
    if len(xs) == 1:
        return np.full(x.shape, ys[0])
    start = 1 if xs[0] <= 0 else 0
    logs = np.log(np.asarray(xs[start:], dtype=np.float64))
    inside = np.interp(np.log(np.maximum(x, xs[start])), logs, ys[start:])
    if start == 0:
        return inside
    share = np.clip(x, 0.0, xs[1]) / xs[1]
    return np.where(x < xs[1], ys[0] + share * (ys[1] - ys[0]), inside)


def decode_s_per_byte_at(
    curve: DecodeCurve, *, working_set_bytes: Floats, matrix_bytes: float
) -> Floats:
    """Seconds a weight byte of one-row work, for every working set."""
    sizes, values = [], []
    for size, group in groupby(curve.points, key=lambda point: point.matrix_bytes):
        points = list(group)
        sets = [point.working_set_bytes for point in points]
        slowness = [1 / point.bytes_per_s for point in points]
        sizes.append(size)
        values.append(interpolate_at(sets, slowness, working_set_bytes))
    return _between(sizes, values, matrix_bytes) / curve.efficiency


def batch_s_per_flop_at(
    curve: BatchCurve, *, num_rows: int, num_weights: float, working_set_bytes: Floats
) -> Floats:
    """Seconds a floating-point operation of `num_rows` rows at once, for every working set."""
    sizes, values = [], []
    for size, of_size in groupby(curve.points, key=lambda point: point.num_weights):
        sets, slownesses = [], []
        for working_set, group in groupby(of_size, key=lambda point: point.working_set_bytes):
            times = [(point.num_rows, point.num_rows / point.flops_per_s) for point in group]
            per_row = times[0][1] / times[0][0]
            known = len(times) > 1 and num_rows > times[0][0]
            sets.append(working_set)
            slownesses.append(rows_line(times, num_rows) / num_rows if known else per_row)
        sizes.append(size)
        values.append(interpolate_at(sets, slownesses, working_set_bytes))
    return _between(sizes, values, num_weights) / curve.efficiency


def matrix_s_at(
    kernel: Kernel,
    *,
    num_weights: int,
    matrix_bytes: float,
    num_rows: int,
    working_set_bytes: Floats,
) -> Floats:
    """Seconds of one matrix, for every working set."""
    walk = matrix_bytes * decode_s_per_byte_at(
        kernel.decode, working_set_bytes=working_set_bytes, matrix_bytes=matrix_bytes
    )
    if num_rows <= 1:
        return kernel.dispatch_s + walk
    slowness = batch_s_per_flop_at(
        kernel.batch,
        num_rows=num_rows,
        num_weights=num_weights,
        working_set_bytes=working_set_bytes,
    )
    work = 2 * num_rows * num_weights * slowness
    knows_sets = kernel.batch.points[0].working_set_bytes > 0
    return kernel.dispatch_s + (work if knows_sets else np.maximum(work, walk))


def attention_s_at(
    kernel: AttentionKernel,
    *,
    num_rows: int,
    num_tokens: Floats,
    num_heads: int,
    head_dim: int,
    working_set_bytes: Floats,
) -> Floats:
    """Seconds of one layer's attention of `num_rows` new tokens, for every number of tokens and
    working set (arrays that broadcast)."""
    width = num_heads * head_dim
    rows, slownesses, fixed_parts = [], [], []
    for count, group in groupby(kernel.points, key=lambda point: point.num_rows):
        points = list(group)
        sets = [point.working_set_bytes for point in points]
        rows.append(count)
        slownesses.append(
            interpolate_at(sets, [1 / point.flops_per_s for point in points], working_set_bytes)
        )
        fixed_parts.append(
            interpolate_at(sets, [point.fixed_s / count for point in points], working_set_bytes)
        )
    slowness = _between(rows, slownesses, num_rows)
    fixed = _between(rows, fixed_parts, num_rows) * num_rows
    if kernel.width and num_rows > 1:
        fixed = fixed * (width / kernel.width)
    return fixed + 4 * num_rows * width * num_tokens * slowness / kernel.efficiency


def _between(xs: Sequence[float], values: Sequence[Floats], x: float) -> Floats:
    """`interpolate` at one x between whole arrays of values: a weighted sum of two of them."""
    weights = [
        interpolate(xs, [float(other == index) for other in range(len(xs))], x)
        for index in range(len(xs))
    ]
    total = np.zeros_like(values[0])
    for weight, value in zip(weights, values, strict=True):
        if weight:
            total = total + weight * value
    return total

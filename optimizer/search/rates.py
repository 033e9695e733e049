"""`hwprofiles.rates` over arrays of working sets: the same interpolation, many points at once.

The scalar functions are the definition; a test holds these to them. Only what varies over a
search is an array here: the working set, and the tokens that attention walks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt

from hwprofiles.device import AttentionKernel, DecodeCurve, Kernel
from hwprofiles.rates import batch_s_per_flop, interpolate

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


def matrix_s_at(
    kernel: Kernel,
    *,
    num_weights: int,
    matrix_bytes: float,
    num_rows: int,
    working_set_bytes: Floats,
) -> Floats:
    """Seconds of one matrix, for every working set."""
    seconds = matrix_bytes * decode_s_per_byte_at(
        kernel.decode, working_set_bytes=working_set_bytes, matrix_bytes=matrix_bytes
    )
    if num_rows > 1:
        slowness = batch_s_per_flop(kernel.batch, num_rows=num_rows, num_weights=num_weights)
        seconds = np.maximum(seconds, 2 * num_rows * num_weights * slowness)
    return kernel.dispatch_s + seconds


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

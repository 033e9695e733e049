"""Rates read off a profile one value at a time: arithmetic of the tests' own.

The product computes over arrays (`hwprofiles.profiles.rates`); this is what it must equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from hwprofiles.profiles.device import AttentionKernel, BatchCurve, DecodeCurve, Kernel, Overheads


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


def batch_s_per_flop(
    curve: BatchCurve, *, num_rows: int, num_weights: float, working_set_bytes: float = 0.0
) -> float:
    """Seconds a floating-point operation of `num_rows` rows at once, in matrices of this size,
    within this working set."""
    sizes, values = [], []
    for size, of_size in groupby(curve.points, key=lambda point: point.num_weights):
        sets, slownesses = [], []
        for working_set, group in groupby(of_size, key=lambda point: point.working_set_bytes):
            # Time is nearly a fixed part (reading weights) and a part a row, so it is what is
            # linear between two measured numbers of rows.
            times = [(point.num_rows, point.num_rows / point.flops_per_s) for point in group]
            per_row = times[0][1] / times[0][0]
            known = len(times) > 1 and num_rows > times[0][0]
            sets.append(working_set)
            slownesses.append(rows_line(times, num_rows) / num_rows if known else per_row)
        sizes.append(size)
        values.append(interpolate(sets, slownesses, working_set_bytes))
    return interpolate(sizes, values, num_weights) / curve.efficiency


def matrix_s(
    kernel: Kernel,
    *,
    num_weights: int,
    matrix_bytes: float,
    num_rows: int,
    working_set_bytes: float,
) -> float:
    """Seconds of one matrix: dispatch, and walking its bytes or doing its work.

    Many rows: as measured for that many within that working set; where no working set is known,
    the slower of the two.
    """
    walk = matrix_bytes * decode_s_per_byte(
        kernel.decode, working_set_bytes=working_set_bytes, matrix_bytes=matrix_bytes
    )
    if num_rows <= 1:
        return kernel.dispatch_s + walk
    slowness = batch_s_per_flop(
        kernel.batch,
        num_rows=num_rows,
        num_weights=num_weights,
        working_set_bytes=working_set_bytes,
    )
    work = 2 * num_rows * num_weights * slowness
    knows_sets = kernel.batch.points[0].working_set_bytes > 0
    return kernel.dispatch_s + (work if knows_sets else max(work, walk))


def attention_s(
    kernel: AttentionKernel,
    *,
    num_rows: int,
    num_tokens: int,
    num_heads: int,
    num_kv_heads: int,
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
    if kernel.packed_width and num_rows > 1:
        fixed *= (num_heads + 2 * num_kv_heads) * head_dim / kernel.packed_width
    elif kernel.width and num_rows > 1:
        fixed *= width / kernel.width
    return fixed + 4 * num_rows * width * num_tokens * slowness / kernel.efficiency


def layer_rest_s(
    kernel: Kernel,
    overheads: Overheads,
    *,
    width: int,
    inner: int,
    num_rows: int,
    num_sessions: int = 1,
    working_set_bytes: float,
) -> float:
    """Seconds of one layer beyond its matrices and attention, in a step that walks
    `working_set_bytes`.

    From whole layers where they were measured: rows of one session, plus what the same number of
    rows costs more when they belong to as many sessions. Wider layers than measured: in
    proportion. Otherwise overhead and elementwise traffic.
    """
    if not kernel.layers:
        moved = 4 * (4 * width + 3 * inner) * (num_rows - 1)
        return overheads.layer_s.effective + moved / overheads.elementwise_bytes_per_s.effective
    widths: list[float] = []
    values: list[float] = []
    for size, group in groupby(kernel.layers, key=lambda point: point.width):
        sets, rests = [], []
        for size_of_set, of_set in groupby(group, key=lambda point: point.working_set_bytes):
            points = list(of_set)
            alone = [(p.num_rows, p.seconds) for p in points if p.num_sessions == 1]
            shared = [(p.num_rows, p.seconds) for p in points if p.num_sessions == p.num_rows]
            rest = rows_line(alone, num_rows)
            if num_sessions > 1 and len(shared) > 1:
                rest += rows_line(shared, num_sessions) - rows_line(alone, num_sessions)
            sets.append(size_of_set)
            rests.append(rest)
        widths.append(size)
        values.append(interpolate(sets, rests, working_set_bytes))
    if width > widths[-1]:
        return values[-1] * width / widths[-1]
    return interpolate(widths, values, width)


def rows_line(points: Sequence[tuple[int, float]], x: float) -> float:
    """Piecewise linear through rising points; the last piece goes on, the first value holds."""
    if x <= points[0][0] or len(points) == 1:
        return points[0][1]
    last = len(points) - 2
    at = next((i for i in range(last) if x < points[i + 1][0]), last)
    (low, below), (high, above) = points[at], points[at + 1]
    return below + (above - below) * (x - low) / (high - low)


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

"""Read rates off a device profile's curves: between measured points, and held beyond them.

Interpolation is linear in seconds a byte (or seconds a FLOP) over the logarithm of a size: times
add up, rates do not, and caches fill by ratios. Over rows it is linear in seconds.

Working sets and numbers of tokens may be arrays: a search asks for thousands of them at once. A
plain number gives one value (0-d). Formulas: ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from hwprofiles.profiles.device import (
    AttentionKernel,
    BatchCurve,
    DecodeCurve,
    Kernel,
    LayerPoint,
    Overheads,
)

Floats: TypeAlias = npt.NDArray[np.float64]
Quantity: TypeAlias = float | Floats  # one number, or an array of them

_Point = TypeVar("_Point")


class AttentionLine(NamedTuple):
    """Seconds of attention as a line over the tokens attended to."""

    fixed_s: Floats
    s_per_token: Floats

    def seconds(self, num_tokens: Quantity) -> Floats:
        """Seconds over `num_tokens` tokens."""
        return self.fixed_s + self.s_per_token * num_tokens


def decode_s_per_byte(
    curve: DecodeCurve, *, working_set_bytes: Quantity, matrix_bytes: float
) -> Floats:
    """Seconds for each weight byte of one-row work in matrices of this size, for every working
    set."""

    def slowness(points: Sequence[tuple[float, float]]) -> Floats:
        sets, values = _columns(points)
        return interpolate(sets, values, working_set_bytes)

    by_size = _grouped(
        (point.matrix_bytes, (point.working_set_bytes, 1 / point.bytes_per_s))
        for point in curve.points
    )
    return _between(by_size, slowness, matrix_bytes) / curve.efficiency


def batch_s_per_flop(
    curve: BatchCurve, *, num_rows: int, num_weights: float, working_set_bytes: Quantity = 0.0
) -> Floats:
    """Seconds for each floating-point operation of `num_rows` rows at once, in matrices of this
    size, for every working set."""

    def slowness(points: Sequence[tuple[float, tuple[int, float]]]) -> Floats:
        by_set = _grouped(points)
        values = [_row_slowness(times, num_rows) for _, times in by_set]
        return interpolate([size for size, _ in by_set], values, working_set_bytes)

    by_size = _grouped(
        (
            point.num_weights,
            (point.working_set_bytes, (point.num_rows, point.num_rows / point.flops_per_s)),
        )
        for point in curve.points
    )
    return _between(by_size, slowness, num_weights) / curve.efficiency


def _row_slowness(times: Sequence[tuple[int, float]], num_rows: int) -> float:
    """Seconds a row and FLOP of a row. A fixed part reads weights and a part grows with the rows,
    so the time is what is linear between two measured numbers of rows."""
    if len(times) > 1 and num_rows > times[0][0]:
        return rows_line(times, num_rows) / num_rows
    return times[0][1] / times[0][0]


def matrix_s(
    kernel: Kernel,
    *,
    num_weights: int,
    matrix_bytes: float,
    num_rows: int,
    working_set_bytes: Quantity,
) -> Floats:
    """Seconds of one matrix, for every working set: dispatch, and reading its bytes or computing.

    Many rows: as measured for that many within that working set. Where the profile knows no
    working set: the slower of reading and computing.
    """

    def read_s() -> Floats:
        return matrix_bytes * decode_s_per_byte(
            kernel.decode, working_set_bytes=working_set_bytes, matrix_bytes=matrix_bytes
        )

    if num_rows <= 1:
        return kernel.dispatch_s + read_s()
    slowness = batch_s_per_flop(
        kernel.batch,
        num_rows=num_rows,
        num_weights=num_weights,
        working_set_bytes=working_set_bytes,
    )
    work_s = 2 * num_rows * num_weights * slowness
    knows_sets = kernel.batch.points[0].working_set_bytes > 0
    return kernel.dispatch_s + (work_s if knows_sets else np.maximum(work_s, read_s()))


def attention_line(
    kernel: AttentionKernel,
    *,
    num_rows: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    working_set_bytes: Quantity,
) -> AttentionLine:
    """One layer's attention of `num_rows` new tokens, in a step that reads `working_set_bytes`
    in all."""

    def slowness(points: Sequence[tuple[float, float, float]]) -> Floats:
        sets, values, _ = _columns(points)
        return interpolate(sets, values, working_set_bytes)

    def fixed_part(points: Sequence[tuple[float, float, float]]) -> Floats:
        sets, _, values = _columns(points)
        return interpolate(sets, values, working_set_bytes)

    width = num_heads * head_dim
    by_rows = _grouped(
        (
            point.num_rows,
            (point.working_set_bytes, 1 / point.flops_per_s, point.fixed_s / point.num_rows),
        )
        for point in kernel.points
    )
    fixed = _between(by_rows, fixed_part, num_rows) * num_rows
    if num_rows > 1:
        packed = (num_heads + 2 * num_kv_heads) * head_dim
        fixed = fixed * (
            packed / kernel.packed_width if kernel.packed_width else width / (kernel.width or width)
        )
    flops = 4 * num_rows * width
    return AttentionLine(fixed, flops * _between(by_rows, slowness, num_rows) / kernel.efficiency)


def attention_s(
    kernel: AttentionKernel,
    *,
    num_rows: int,
    num_tokens: Quantity,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    working_set_bytes: Quantity,
) -> Floats:
    """Seconds of one layer's attention of `num_rows` new tokens over `num_tokens` in all."""
    line = attention_line(
        kernel,
        num_rows=num_rows,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        working_set_bytes=working_set_bytes,
    )
    return line.seconds(num_tokens)


def layer_rest_s(
    kernel: Kernel,
    overheads: Overheads,
    *,
    width: int,
    inner: int,
    num_rows: int,
    num_sessions: int = 1,
    working_set_bytes: Quantity = 0.0,
) -> Floats:
    """Seconds of one layer beyond its matrices and attention, in a step that reads
    `working_set_bytes` in all, for every working set.

    From whole layers where they were measured: rows of one session, plus what the same number of
    rows costs more when they belong to as many sessions. Wider layers than measured: in
    proportion. Otherwise overhead and elementwise traffic.
    """
    if not kernel.layers:
        moved = 4 * (4 * width + 3 * inner) * (num_rows - 1)
        rate = overheads.elementwise_bytes_per_s.effective
        return np.full(np.shape(working_set_bytes), overheads.layer_s.effective + moved / rate)

    def within_sets(points: Sequence[LayerPoint]) -> Floats:
        by_set = _grouped((point.working_set_bytes, point) for point in points)
        values = [_rest_of_rows(group, num_rows, num_sessions) for _, group in by_set]
        return interpolate([size for size, _ in by_set], values, working_set_bytes)

    by_width = _grouped((float(point.width), point) for point in kernel.layers)
    widest = by_width[-1][0]
    return _between(by_width, within_sets, width) * max(1.0, width / widest)


def _rest_of_rows(points: Sequence[LayerPoint], num_rows: int, num_sessions: int) -> float:
    """Of layers of one width within one working set."""
    alone = [(point.num_rows, point.seconds) for point in points if point.num_sessions == 1]
    shared = [(p.num_rows, p.seconds) for p in points if p.num_sessions == p.num_rows]
    rest = rows_line(alone, num_rows)
    if num_sessions > 1 and len(shared) > 1:
        rest += rows_line(shared, num_sessions) - rows_line(alone, num_sessions)
    return rest


def rows_line(points: Sequence[tuple[int, float]], x: float) -> float:
    """Piecewise linear through rising points; the last piece goes on, the first value holds."""
    if x <= points[0][0] or len(points) == 1:
        return points[0][1]
    last = len(points) - 2
    at = next((i for i in range(last) if x < points[i + 1][0]), last)
    (low, below), (high, above) = points[at], points[at + 1]
    return below + (above - below) * (x - low) / (high - low)


def interpolate(xs: Sequence[float], ys: Sequence[float], x: Quantity) -> Floats:
    """Piecewise linear in log x through rising points, for every x; held constant outside them.

    A first point at 0 has no logarithm: up to the second point it is linear in x itself.
    """
    if len(xs) == 1:
        return np.full(np.shape(x), ys[0])
    start = 1 if xs[0] <= 0 else 0
    inside = np.interp(np.log(np.maximum(x, xs[start])), np.log(xs[start:]), ys[start:])
    if start == 0:
        return np.asarray(inside)
    share = np.clip(x, 0.0, xs[1]) / xs[1]
    return np.where(np.less(x, xs[1]), ys[0] + share * (ys[1] - ys[0]), inside)


def _grouped(
    keyed: Iterable[tuple[float, _Point]],
) -> list[tuple[float, list[_Point]]]:
    """Points with equal keys together, in the order in which they come."""
    return [
        (key, [point for _, point in group])
        for key, group in groupby(keyed, key=lambda pair: pair[0])
    ]


def _columns(points: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
    return list(zip(*points, strict=True))


def _between(
    groups: Sequence[tuple[float, list[_Point]]],
    value_of: Callable[[list[_Point]], Floats],
    x: float,
) -> Floats:
    """`interpolate` at one x between the values of whole groups of points. Only the groups on
    either side of x are evaluated."""
    place = float(interpolate([key for key, _ in groups], range(len(groups)), x))
    low = int(place)
    share = place - low
    value = value_of(groups[low][1])
    if share == 0:
        return value
    return (1 - share) * value + share * value_of(groups[low + 1][1])

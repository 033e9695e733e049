"""An engine of a few layers, timed: what a server's layer takes beyond its matrices."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from hwprofiles.profiler.measured_backends import BackKernels, Call, SessionLoad, StackShape
from hwprofiles.profiler.parts import digits
from hwprofiles.profiler.timing import Timing, measure
from hwprofiles.profiles.device import AttentionKernel, AttentionPoint, Kernel, LayerPoint
from hwprofiles.profiles.rates import attention_s, matrix_s

SHORT = 16  # tokens cached in the batches
FEW_ROWS = 16  # more rows than this hide the reading of weights


@dataclass(frozen=True, slots=True, kw_only=True)
class BackEffort:
    """How long to measure: passes, seconds a point in each, and which sizes.

    Engines have `layers` layers, and then as many as `deep_bytes` hold, beyond the caches."""

    num_passes: int
    budget_s: float
    working_sets: tuple[float, ...]
    rows: tuple[int, ...]
    large_rows: tuple[int, ...]
    sessions: tuple[int, ...]
    prompts: tuple[int, ...]
    layers: int
    deep_bytes: float
    long: int


class StackProbe:
    """An engine of a few layers: what a layer takes beyond its matrices and attention.

    With m (by working set) and a of a layer as predicted, T(L) = base + L (m_L + a + rest): two
    depths give `rest` for each batch, whatever a step takes besides. Few rows take another rest
    where the layers lie beyond the caches: a third depth.
    """

    def __init__(
        self,
        kernels: BackKernels,
        shape: StackShape,
        bits: int,
        kernel: Kernel,
        effort: BackEffort,
        spreads: list[float],
    ) -> None:
        self._shape, self._bits, self._kernel = shape, bits, kernel
        self._effort, self._spreads = effort, spreads
        self._stack = kernels.stack(shape, num_layers=effort.layers, weight_bits=bits)
        self._one = kernels.stack(shape, num_layers=1, weight_bits=bits)
        self._depth = round(effort.deep_bytes / self._layer_bytes())
        self._deep = (
            kernels.stack(shape, num_layers=self._depth, weight_bits=bits)
            if self._depth > effort.layers
            else None
        )
        self._seconds: dict[tuple[int, int], float] = {}
        self._one_seconds: dict[tuple[int, int], float] = {}

    def layers(self, attention: AttentionKernel) -> list[LayerPoint]:
        """The rest of whole layers: prompts of one session, and batches of sessions.

        Beyond FEW_ROWS rows arithmetic hides reading, so the smaller set's rest holds for both."""
        batches = [(count, count) for count in self._effort.sessions]
        loads = sorted([*batches, *((1, n) for n in self._effort.prompts)])
        shallow = self._effort.layers
        rests = {load: self._rest_s(*load, attention, shallow) for load in loads}
        points = self._points(rests, shallow)
        if self._deep is not None:
            few = [load for load in loads if load[1] <= FEW_ROWS]
            rests |= {load: self._rest_s(*load, attention, self._depth) for load in few}
            points += self._points(rests, self._depth)
        return points

    def _points(self, rests: dict[tuple[int, int], float], num_layers: int) -> list[LayerPoint]:
        return [
            LayerPoint(
                width=self._shape.width,
                working_set_bytes=digits(num_layers * self._layer_bytes()),
                num_sessions=sessions,
                num_rows=rows,
                seconds=digits(rest_s),
            )
            for (sessions, rows), rest_s in rests.items()
        ]

    def _rest_s(self, sessions: int, rows: int, attention: AttentionKernel, layers: int) -> float:
        shape = self._shape
        load = SessionLoad(1, SHORT) if sessions == rows else SessionLoad(rows, 0)
        loads = [load] * sessions
        if layers == self._depth and self._deep is not None:
            whole = timed(self._deep.step(loads), self._effort, self._spreads).seconds
        else:
            if (sessions, rows) not in self._seconds:
                self._seconds[sessions, rows] = self._time(loads)
            whole = self._seconds[sessions, rows]
        deep = whole - layers * self._matrices_s(layers, rows)
        if (sessions, rows) not in self._one_seconds:
            seconds = timed(self._one.step(loads), self._effort, self._spreads).seconds
            self._one_seconds[sessions, rows] = seconds
        one = self._one_seconds[sessions, rows] - self._matrices_s(1, rows)
        attended = attention_s(
            attention,
            num_rows=load.num_rows,
            num_tokens=load.position + load.num_rows,
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            working_set_bytes=0.0,
        )
        return (deep - one) / (layers - 1) - sessions * float(attended)

    def attention(self, kv_bits: int) -> AttentionKernel:
        """The slope in cached tokens: of one row (mean of one and of eight sessions, whose caches
        lie in nearer and farther memory), and of prompts.

        What does not grow with the cache is in `layers`, so the fixed part here is zero.
        """
        long, layers = self._effort.long, self._effort.layers
        slopes = []
        for sessions in (1, 8):
            near = self._time([SessionLoad(1, SHORT)] * sessions)
            self._seconds[sessions, sessions] = near
            depth = long // 2 if sessions > 1 else long
            far = self._time([SessionLoad(1, depth)] * sessions)
            slopes.append((far - near) / (depth - SHORT) / sessions / layers)
        points = [self._point(1, statistics.mean(slopes))]
        for num_rows in self._effort.prompts:
            near = self._time([SessionLoad(num_rows, 0)])
            self._seconds[1, num_rows] = near
            far = self._time([SessionLoad(num_rows, long // 2)])
            points.append(self._point(num_rows, (far - near) / (long // 2) / layers))
        shape = self._shape
        return AttentionKernel(
            kv_bits=kv_bits,
            source="bench",
            points=tuple(points),
            width=shape.num_heads * shape.head_dim,
            packed_width=(shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim,
        )

    def _point(self, num_rows: int, slope_s: float) -> AttentionPoint:
        width = self._shape.num_heads * self._shape.head_dim
        return AttentionPoint(
            num_rows=num_rows,
            fixed_s=0.0,
            flops_per_s=digits(4 * num_rows * width / max(slope_s, 1e-10)),
        )

    def _time(self, loads: Sequence[SessionLoad]) -> float:
        return timed(self._stack.step(loads), self._effort, self._spreads).seconds

    def _sizes(self) -> list[tuple[int, int]]:
        """Weights and outputs of a layer's matrices: queries, keys and values in one, gate and up
        in one."""
        shape = self._shape
        heads = shape.num_heads * shape.head_dim
        packed = heads + 2 * shape.num_kv_heads * shape.head_dim
        pairs = (
            (shape.width, packed),
            (heads, shape.width),
            (shape.width, 2 * shape.inner),
            (shape.inner, shape.width),
        )
        return [(inputs * outputs, outputs) for inputs, outputs in pairs]

    def _layer_bytes(self) -> float:
        return sum(back_bytes(weights, outputs, self._bits) for weights, outputs in self._sizes())

    def _matrices_s(self, num_layers: int, num_rows: int) -> float:
        """Of one layer, as predictions will have it."""
        return sum(
            float(
                matrix_s(
                    self._kernel,
                    num_weights=weights,
                    matrix_bytes=back_bytes(weights, outputs, self._bits),
                    num_rows=num_rows,
                    working_set_bytes=num_layers * self._layer_bytes(),
                )
            )
            for weights, outputs in self._sizes()
        )


def back_bytes(num_weights: float, num_outputs: float, bits: int) -> float:
    """Bytes of back matrices: bits / 8 a weight, and at 8 bits one fp32 scale an output."""
    return num_weights * bits / 8 + (4 * num_outputs if bits == 8 else 0)


def timed(call: Call, effort: BackEffort, spreads: list[float]) -> Timing:
    """Time one call within the effort's budget, and keep its spread."""
    timing = measure(call, budget_s=effort.budget_s)
    spreads.append(timing.spread)
    return timing

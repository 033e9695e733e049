"""Seconds of the front and of a packed batch: the cost models, taken apart so that each part is
computed once.

A simulation asks for the same few thousand values millions of times. The front's seconds depend on
device, rows and position and are remembered as they are. A batch's seconds (optimizer.cost.cloud)
are a sum, so its parts are remembered: matrices by rows in all, head by sessions, and attention by
rows of a session, which is linear in the tokens it attends to:

    batch = base(rows) + head(sessions) + sum over sessions of [fixed(r) + slope(r) * tokens]

Nothing is rounded into buckets: the sum is `back_step_s`, and a test says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from hwprofiles.device import DeviceProfile
from hwprofiles.rates import attention_s
from optimizer.cost.cloud import SessionRows, back_step_s
from optimizer.cost.edge import front_step
from optimizer.cost.weights import back_matrix_bytes, layer_matrices
from optimizer.geometry import ModelGeometry
from optimizer.plan import Plan
from optimizer.simulate.scenario import MeasuredSteps


FAR_TOKENS = 4096  # where attention's slope is read off; it is linear, so anywhere would do


class FrontTimes:
    """Seconds of the plan's front on one device."""

    def __init__(self, device: DeviceProfile, plan: Plan) -> None:
        self._device = device
        self._plan = plan
        self._known: dict[tuple[int, int], float] = {}

    def seconds(self, num_rows: int, position: int) -> float:
        """One forward pass of `num_rows` rows after `position` cached tokens."""
        key = (num_rows, position)
        found = self._known.get(key)
        if found is None:
            plan = self._plan
            found = self._known[key] = front_step(
                self._device,
                plan.model.geometry,
                split=plan.partition.split,
                weight_bits=plan.partition.front_bits,
                kv_bits=plan.kv_bits,
                num_rows=num_rows,
                position=position,
                exact=plan.exact_front,
            ).total_s
        return found


class BackTimes(Protocol):
    """Seconds of one batch."""

    def seconds(self, sessions: Iterable[SessionRows]) -> float:
        """One batch of these rows after these positions."""
        ...


class _Attention(NamedTuple):
    fixed_s: float
    slope_s: float  # each token attended to


class ModelledBack:
    """The cost model's batch."""

    def __init__(self, device: DeviceProfile, plan: Plan, *, kv_bits: int) -> None:
        self._device = device
        self._geometry: ModelGeometry = plan.model.geometry
        self._num_layers = plan.model.geometry.num_layers - plan.partition.split
        self._back_bits = plan.partition.back_bits
        self._kv_bits = kv_bits
        # As in back_step_s: what one step walks decides which cache level it runs from.
        self._working_set_bytes = self._num_layers * sum(
            back_matrix_bytes(matrix, self._back_bits) for matrix in layer_matrices(self._geometry)
        )
        self._base: dict[tuple[int, int], float] = {}
        self._attention: dict[int, _Attention] = {}

    def seconds(self, sessions: Iterable[SessionRows]) -> float:
        """See BackTimes."""
        total, num_rows, count = 0.0, 0, 0
        known = self._attention
        for rows, position in sessions:
            part = known.get(rows) or self._attend(rows)
            total += part.fixed_s + part.slope_s * (position + rows)
            num_rows += rows
            count += 1
        if not count:
            return 0.0
        base = self._base.get((num_rows, count))
        if base is None:
            base = self._base[num_rows, count] = self._without_attention(num_rows, count)
        return base + total

    def _without_attention(self, num_rows: int, count: int) -> float:
        """The whole model on any batch of this size, less that batch's attention."""
        batch = [SessionRows(1, 0)] * (count - 1) + [SessionRows(num_rows - count + 1, 0)]
        whole = self._whole(batch)
        for rows, position in batch:
            part = self._attention.get(rows) or self._attend(rows)
            whole -= part.fixed_s + part.slope_s * (position + rows)
        return whole

    def _whole(self, sessions: list[SessionRows]) -> float:
        return back_step_s(
            self._device,
            self._geometry,
            num_layers=self._num_layers,
            back_bits=self._back_bits,
            kv_bits=self._kv_bits,
            sessions=sessions,
        )

    def _attend(self, rows: int) -> _Attention:
        """Attention of one session's `rows` in all layers, as a line over the tokens attended to."""

        def seconds(num_tokens: int) -> float:
            return self._num_layers * attention_s(
                self._device.attention_kernel(self._kv_bits),
                num_rows=rows,
                num_tokens=num_tokens,
                num_heads=self._geometry.num_heads,
                head_dim=self._geometry.head_dim,
                working_set_bytes=self._working_set_bytes,
            )

        part = _Attention(seconds(0), (seconds(FAR_TOKENS) - seconds(0)) / FAR_TOKENS)
        self._attention[rows] = part
        return part


class MeasuredBack:
    """Measured batches, linear between the points and beyond the last two.

    With p(rows) of one session and d(n) of n sessions with a row each, a batch of `rows` rows of `n`
    sessions takes p(rows) + d(n) - p(n): the rows' work, and what it costs that they belong to n.
    Attention adds `attention_s_per_token` for each row and token beyond `context_tokens`.
    """

    def __init__(self, measured: MeasuredSteps) -> None:
        self._measured = measured
        self._prefill = sorted((p.rows, p.seconds) for p in measured.points if p.sessions == 1)
        self._decode = sorted(
            (p.rows, p.seconds) for p in measured.points if p.sessions == p.rows
        )

    def seconds(self, sessions: Iterable[SessionRows]) -> float:
        """See BackTimes."""
        batch = list(sessions)
        if not batch:
            return 0.0
        num_rows, count = sum(rows for rows, _ in batch), len(batch)
        context = self._measured.context_tokens
        # Row i of a session attends to position + i tokens: on average the middle of them.
        further = sum(rows * (position + rows / 2 - context) for rows, position in batch)
        return max(
            _line(self._prefill, num_rows)
            + _line(self._decode, count)
            - _line(self._prefill, count)
            + further * self._measured.attention_s_per_token,
            0.0,
        )


def _line(points: list[tuple[int, float]], x: float) -> float:
    """Linear through rising points; beyond the last, along the last two (held when there is one)."""
    if len(points) == 1 or x <= points[0][0]:
        return points[0][1]
    k = next((i for i in range(1, len(points)) if x <= points[i][0]), len(points) - 1)
    (x0, y0), (x1, y1) = points[k - 1], points[k]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)

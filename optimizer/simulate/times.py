"""Seconds of the front and of a packed batch: the cost models, taken apart so that each part is
computed once.

A simulation asks for the same few thousand values millions of times. The front's seconds depend on
device, rows and position and are remembered as they are. A batch's seconds (optimizer.cost.cloud)
are a sum, so its parts are remembered: matrices by rows in all, head by sessions, and attention by
rows of a session, which is linear in the tokens it attends to:

    batch = base(rows, sessions, logits) + sum over sessions of [fixed(r) + slope(r) * tokens]

Nothing is rounded into buckets: the sum is `back_step_s`, and a test says so.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from hwprofiles.links.shape import Curve, uniform
from hwprofiles.profiles.device import DeviceProfile
from hwprofiles.profiles.rates import attention_s
from optimizer.artifacts.plan import Plan
from optimizer.cost.cloud import SessionRows, back_compute_bits, back_step_s, sample_s
from optimizer.cost.codec import LevelCost, decode_s, encode_s, frame_bytes
from optimizer.cost.edge import front_step
from optimizer.cost.weights import Matrix, back_layer_matrices, back_matrix_bytes
from optimizer.simulate.scenario import MeasuredSteps

FAR_TOKENS = 4096  # where attention's slope is read off; it is linear, so anywhere would do


class FrameCost(NamedTuple):
    """One message of rows: bytes on the wire, seconds of encoding and of decoding it."""

    num_bytes: int
    encode_s: float
    decode_s: float


class LevelTimes:
    """A level's bytes and seconds by rows."""

    def __init__(self, level: LevelCost, hidden_size: int) -> None:
        self.name = level.name
        self._level = level
        self._hidden_size = hidden_size
        self._known: dict[tuple[int, bool], FrameCost] = {}

    def frame(self, num_rows: int, *, of_prompt: bool = False) -> FrameCost:
        """A message of `num_rows` rows."""
        key = (num_rows, of_prompt)
        found = self._known.get(key)
        if found is None:
            level, hidden_size = self._level, self._hidden_size
            level = level.of_prompt if of_prompt else level
            found = self._known[key] = FrameCost(
                frame_bytes(level, hidden_size=hidden_size, num_rows=num_rows),
                encode_s(level, hidden_size=hidden_size, num_rows=num_rows),
                decode_s(level, hidden_size=hidden_size, num_rows=num_rows),
            )
        return found


class FrontTimes:
    """Seconds of the plan's front on one device. `message_s`: its network stack's share of a round
    trip, as given or as the profile has it; `sample_s`: drawing a token there."""

    def __init__(self, device: DeviceProfile, plan: Plan, message_s: float | None = None) -> None:
        self._device = device
        self._plan = plan
        self._known: dict[tuple[int, int], float] = {}
        figure = device.overheads.message_s
        self.sample_s = sample_s(device, plan.model.geometry, num_logits=1)
        known_s = 0.0 if figure is None else figure.effective
        self.message_s = known_s if message_s is None else message_s

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
                layer_bits=plan.front_layer_bits,
            ).total_s
        return found


class BackTimes(Protocol):
    """Seconds of one batch."""

    def seconds(self, sessions: Iterable[SessionRows], num_logits: int) -> float:
        """One batch of these rows after these positions, `num_logits` of which meet the head."""
        ...


class _Attention(NamedTuple):
    """Attention of one session's rows in all layers of one window."""

    fixed_s: float
    slope_s: float  # each token attended to
    most_tokens: int


class ModelledBack:
    """The cost model's batch."""

    def __init__(self, device: DeviceProfile, plan: Plan, *, kv_bits: int) -> None:
        self._device = device
        self._geometry = geometry = plan.model.geometry
        self._num_layers = geometry.num_layers - plan.partition.split
        self._back_bits = plan.partition.back_bits
        self._kv_bits = kv_bits
        layers = range(plan.partition.split, geometry.num_layers)
        self._windows = Counter(geometry.window_of_layer(layer) for layer in layers)
        # As in back_step_s: what one step walks decides which cache level it runs from.
        bits = back_compute_bits(device, self._back_bits)
        head = Matrix("head", geometry.hidden_size, geometry.vocab_size)
        self._working_set_bytes = back_matrix_bytes(head, bits) + self._num_layers * sum(
            back_matrix_bytes(matrix, bits) for matrix in back_layer_matrices(geometry)
        )
        self._base: dict[tuple[int, int, int], float] = {}
        self._attention: dict[int, tuple[_Attention, ...]] = {}

    def seconds(self, sessions: Iterable[SessionRows], num_logits: int) -> float:
        """See BackTimes."""
        total, num_rows, count = 0.0, 0, 0
        known = self._attention
        for rows, position in sessions:
            tokens = position + rows
            for fixed_s, slope_s, most in known.get(rows) or self._attend(rows):
                total += fixed_s + slope_s * (tokens if tokens < most else most)
            num_rows += rows
            count += 1
        if not count:
            return 0.0
        key = (num_rows, count, num_logits)
        base = self._base.get(key)
        if base is None:
            base = self._base[key] = self._without_attention(*key)
        return base + total

    def _without_attention(self, num_rows: int, count: int, num_logits: int) -> float:
        """The whole model on any batch of this size, less that batch's attention."""
        batch = [SessionRows(1, 0)] * (count - 1) + [SessionRows(num_rows - count + 1, 0)]
        whole = back_step_s(
            self._device,
            self._geometry,
            num_layers=self._num_layers,
            back_bits=self._back_bits,
            kv_bits=self._kv_bits,
            sessions=batch,
            num_logits=num_logits,
        )
        for rows, position in batch:
            for fixed_s, slope_s, most in self._attention.get(rows) or self._attend(rows):
                whole -= fixed_s + slope_s * min(position + rows, most)
        return whole

    def _attend(self, rows: int) -> tuple[_Attention, ...]:
        def seconds(num_tokens: int) -> float:
            return attention_s(
                self._device.attention_kernel(self._kv_bits),
                num_rows=rows,
                num_tokens=num_tokens,
                num_heads=self._geometry.num_heads,
                head_dim=self._geometry.head_dim,
                working_set_bytes=self._working_set_bytes,
            )

        slope_s = (seconds(FAR_TOKENS) - seconds(0)) / FAR_TOKENS
        parts = tuple(
            _Attention(
                layers * seconds(0),
                layers * slope_s,
                sys.maxsize if window is None else window + rows - 1,
            )
            for window, layers in self._windows.items()
        )
        self._attention[rows] = parts
        return parts


class MeasuredBack:
    """Measured batches, linear between the points and beyond the last two.

    With p(rows) of one session and d(n) of n sessions with a row each, a batch of `rows` rows
    of `n` sessions takes p(rows) + d(n) - p(n): the rows' work, and what it costs that they
    belong to n. Attention adds `attention_s_per_token` for each row and token beyond
    `context_tokens`. Each batch draws its factor from `spread`.
    """

    def __init__(self, measured: MeasuredSteps, *, seed: int = 0) -> None:
        self._measured = measured
        self._seed = seed
        self._num_batches = 0
        self._spread: Curve | None = None
        if count := len(measured.spread):
            levels = tuple(i / max(count - 1, 1) for i in range(count))
            self._spread = Curve(levels=levels, values=measured.spread)
        self._prefill = sorted((p.rows, p.seconds) for p in measured.points if p.sessions == 1)
        self._decode = sorted((p.rows, p.seconds) for p in measured.points if p.sessions == p.rows)

    def seconds(self, sessions: Iterable[SessionRows], num_logits: int) -> float:
        """See BackTimes. The head's rows are in the points, so `num_logits` is not asked for."""
        batch = list(sessions)
        if not batch:
            return 0.0
        num_rows, count = sum(rows for rows, _ in batch), len(batch)
        context = self._measured.context_tokens
        # Row i of a session attends to position + i tokens: on average the middle of them.
        further = sum(rows * (position + rows / 2 - context) for rows, position in batch)
        middle = max(
            _line(self._prefill, num_rows)
            + _line(self._decode, count)
            - _line(self._prefill, count)
            + further * self._measured.attention_s_per_token,
            0.0,
        )
        if self._spread is None:
            return middle
        self._num_batches += 1
        return middle * self._spread.at(uniform(self._seed, self._num_batches))


def _line(points: list[tuple[int, float]], x: float) -> float:
    """Linear through rising points; beyond the last, along the last two."""
    if len(points) == 1 or x <= points[0][0]:
        return points[0][1]
    k = next((i for i in range(1, len(points)) if x <= points[i][0]), len(points) - 1)
    (x0, y0), (x1, y1) = points[k - 1], points[k]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)

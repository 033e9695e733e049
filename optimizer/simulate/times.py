"""Seconds of the front and of a packed batch, remembered.

A simulation asks for the same few thousand values millions of times. The formulas are the cost
models' (`optimizer.cost`); this asks for each value once. The front's seconds are kept by rows and
position. Of a batch (`BackCost`) the parts are kept, because hardly two batches are alike: all but
attention by rows, sessions and logits; attention by the rows of a session, a line over the tokens
that it attends to. Nothing is rounded into buckets: the sum is `back_step_s`, and a test says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Final, NamedTuple, Protocol, TypeAlias

import numpy as np

from hwprofiles.links.shape import Curve, uniform
from hwprofiles.profiles.device import DeviceProfile
from optimizer.artifacts.plan import Plan
from optimizer.cost.attention import WindowAttention
from optimizer.cost.cloud import BackCost, SessionGroup, SessionRows, lone_step_s, sample_s
from optimizer.cost.codec import LevelCost, decode_s, encode_s, frame_bytes
from optimizer.cost.edge import answer_step_s, front_steps
from optimizer.cost.streaming import reading_s
from optimizer.errors import ScenarioError
from optimizer.simulate.scenario import MeasuredSteps

# A window's attention over the tokens that it attends to: fixed, a token, and at most so many.
Line: TypeAlias = tuple[float, float, float]
# Sessions of a batch by the layer that they enter at and by their rows.
EntryCount: TypeAlias = tuple[tuple[int, int], int]

POSITIONS_AT_ONCE: Final = 64  # asking the front's model for these costs what asking for one does


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
    trip, as given or as the profile has it; `sample_s`: drawing a token there. `busy_s`: seconds
    that all devices with this profile have computed; whoever asks for work adds them.
    split: how many of the plan's front layers; None: all."""

    def __init__(
        self,
        device: DeviceProfile,
        plan: Plan,
        message_s: float | None = None,
        *,
        split: int | None = None,
    ) -> None:
        self._device = device
        self._plan = plan
        self._layer_bits = plan.layer_bits[:split]
        self._lower: dict[int, FrontTimes] = {}
        self._known: dict[tuple[int, int], float] = {}
        figure = device.overheads.message_s
        self._waits = not plan.edge_is_whole
        self.busy_s = 0.0
        self.sample_s = sample_s(device, plan.model.geometry, num_logits=1)
        known_s = 0.0 if figure is None else figure.effective
        self.message_s = known_s if message_s is None else message_s

    def at(self, split: int) -> FrontTimes:
        """The first `split` layers of the same front. Its `busy_s` is not counted."""
        if split == len(self._layer_bits):
            return self
        if split not in self._lower:
            self._lower[split] = FrontTimes(self._device, self._plan, self.message_s, split=split)
        return self._lower[split]

    def seconds(self, num_rows: int, position: int) -> float:
        """One forward pass of `num_rows` rows of a prompt after `position` cached tokens."""
        found = self._known.get((num_rows, position))
        if found is None:
            self._ask(num_rows, position)
            found = self._known[num_rows, position]
        return found

    def step_s(self, position: int) -> float:
        """One row of an answer, as it lasts in a long conversation."""
        return float(answer_step_s(self._device, self.seconds(1, position), waits=self._waits))

    def _ask(self, num_rows: int, position: int) -> None:
        """Remember this position and its neighbours."""
        plan, start = self._plan, position - position % POSITIONS_AT_ONCE
        positions = range(start, start + POSITIONS_AT_ONCE)
        steps = front_steps(
            self._device,
            plan.model.geometry,
            layer_bits=[self._layer_bits],
            weight_bits=plan.partition.front_bits,
            kv_bits=plan.kv_bits,
            num_rows=num_rows,
            positions=positions,
            exact=plan.exact_front,
            reading_s=[reading_s(self._device, plan)],
        )
        seconds = np.broadcast_to(steps.total_s, (1, len(positions)))[0].tolist()
        self._known.update(zip(((num_rows, at) for at in positions), seconds, strict=True))


class LowerRows(NamedTuple):
    """What a session brings to a batch that enters below the plan's split: token ids at layer 0, or
    rows at the split that the session has moved to."""

    num_rows: int
    position: int
    entry: int


class BackTimes(Protocol):
    """Seconds of one batch."""

    def seconds(
        self,
        sessions: Iterable[SessionRows],
        num_logits: int,
        lower: Sequence[LowerRows] = (),
    ) -> float:
        """One batch of these rows after these positions, `num_logits` of which meet the head.

        lower: what enters below the plan's split.
        """
        ...


class ModelledBack:
    """The cost model's batch."""

    def __init__(self, device: DeviceProfile, plan: Plan, *, kv_bits: int) -> None:
        geometry = plan.model.geometry

        def back_from(first: int) -> BackCost:
            return BackCost(
                device,
                geometry,
                num_layers=geometry.num_layers - first,
                back_bits=plan.partition.back_bits,
                kv_bits=kv_bits,
            )

        def attention_from(first: int, rows: int, entry: int) -> tuple[Line, ...]:
            return tuple(map(_numbers, known(first).attention(rows, skipped=entry - first)))

        def rest_from(first: int, counts: tuple[EntryCount, ...], num_logits: int) -> float:
            groups = [
                SessionGroup(rows, 0.0, count, entry - first) for (entry, rows), count in counts
            ]
            return float(known(first).step_without_attention_s(groups, num_logits))

        known = cache(back_from)
        self._device = device
        self._split = plan.partition.split
        self._attention_from, self._rest_from = cache(attention_from), cache(rest_from)
        self._back = known(self._split)
        self._without_attention: dict[tuple[int, int, int], float] = {}
        self._attention: dict[int, tuple[Line, ...]] = {}

    def seconds(
        self,
        sessions: Iterable[SessionRows],
        num_logits: int,
        lower: Sequence[LowerRows] = (),
    ) -> float:
        """See BackTimes."""
        if lower:
            return self._with_lower(sessions, num_logits, lower)
        # Asked millions of times: this is `attended_s` over plain numbers.
        total, num_rows, count = 0.0, 0, 0
        known = self._attention
        for rows, position in sessions:
            tokens = position + rows
            for fixed_s, s_per_token, most in known.get(rows) or self._attend(rows):
                total += fixed_s + s_per_token * (tokens if tokens < most else most)
            num_rows += rows
            count += 1
        if not count:
            return 0.0
        key = (num_rows, count, num_logits)
        base = self._without_attention.get(key)
        if base is None:
            base = self._without_attention[key] = float(self._back.batch_s(*key))
        # A row alone comes after a pause.
        return float(lone_step_s(self._device, base + total, num_rows))

    def _with_lower(
        self, sessions: Iterable[SessionRows], num_logits: int, lower: Sequence[LowerRows]
    ) -> float:
        """`BackCost.step_s` of the layers from the lowest on that a session enters at."""
        first = min(rows.entry for rows in lower)
        entries = [LowerRows(*each, self._split) for each in sessions]
        entries += lower
        total = 0.0
        for rows, position, entry in entries:
            for fixed_s, s_per_token, most in self._attention_from(first, rows, entry):
                total += fixed_s + s_per_token * min(position + rows, most)
        counts = Counter((entry, rows) for rows, _, entry in entries)
        return total + self._rest_from(first, tuple(sorted(counts.items())), num_logits)

    def _attend(self, rows: int) -> tuple[Line, ...]:
        windows = self._back.attention(rows)
        found = self._attention[rows] = tuple(map(_numbers, windows))
        return found


def _numbers(window: WindowAttention) -> Line:
    return float(window.fixed_s), float(window.s_per_token), window.most_tokens


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

    def seconds(
        self,
        sessions: Iterable[SessionRows],
        num_logits: int,
        lower: Sequence[LowerRows] = (),
    ) -> float:
        """See BackTimes. The head's rows are in the points, so `num_logits` is not asked for.

        Raises ScenarioError for what enters below the split: the points know nothing of it.
        """
        if lower:
            raise ScenarioError("measured steps know nothing of the layers below the split")
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

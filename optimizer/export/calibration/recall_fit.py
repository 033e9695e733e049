"""What a row shares with the earlier row of its session that it resembles, fitted to text.

For each number of agreeing tokens (`codec.session_rows`), the share of each component is the least
squares one. Contexts that the text has few of lean on the next shorter one. A row arrives as the
mean of what is quantized to it, so a share fitted to exact rows serves every level.

Source: ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from codec.arrays import F32, F64, I64, U8, Mask
from codec.levels.recall_model import RecallModel
from codec.session_rows import LONGEST_CONTEXT, RowHistory

_LEANS: Final = 100.0  # rows that the next shorter context counts for
_FIRST_SHARE: Final = 0.5  # where the text has no row for a context of one token
_LARGEST_SHARE: Final = 255
_FINER: Final = 8  # units in the finest level's half step
_PART: Final = 1024  # rows at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedRecall:
    """A `RecallModel` without its unit, which follows from the levels."""

    shares: U8
    left: F32
    power: F32

    def model(self, finest_step: float) -> RecallModel:
        """With the unit for levels of which the finest has this half step."""
        return RecallModel(
            shares=self.shares,
            left=self.left,
            power=self.power,
            unit=float(np.float32(finest_step / _FINER)),
        )


def fit_recall(components: F32, usual: Mask, token_ids: I64, window: int) -> FittedRecall:
    """Shares and what is left of the components y [N', D] of the rows under `usual` [N].

    token_ids: [N], windows of `window` tokens, each a session of its own.
    """
    rows = np.cumsum(usual) - 1  # of `components`
    earlier = np.full(len(usual), -1, dtype=np.int64)
    contexts = np.zeros(len(usual), dtype=np.int64)
    for begin in range(0, len(usual), window):
        part = slice(begin, begin + window)
        found = RowHistory(1).references(0, token_ids[part].tolist(), usual[part])
        earlier[part] = np.where(found.positions >= 0, found.positions + begin, -1)
        contexts[part] = found.contexts
    size = components.shape[1]
    shares: F64 = np.zeros((LONGEST_CONTEXT, size))
    power: F64 = np.zeros((LONGEST_CONTEXT, size))
    left: F64 = np.zeros((LONGEST_CONTEXT + 1, size))
    all_rows = np.arange(len(components))
    before_power = left_before = _Sums.of(components, all_rows, all_rows).energy / len(all_rows)
    before_share = np.full(size, _FIRST_SHARE)
    for context in range(LONGEST_CONTEXT + 1):
        which = np.flatnonzero(usual & (contexts == context))
        of_earlier = rows[earlier[which]] if context else rows[which]
        sums = _Sums.of(components, rows[which], of_earlier)
        count = len(which) + _LEANS
        if context == 0:
            left[0] = (sums.energy + _LEANS * left_before) / count
            continue
        strength = sums.earlier + _LEANS * before_power
        share = (sums.product + _LEANS * before_share * before_power) / np.maximum(strength, 1e-30)
        whole = np.clip(np.rint(256 * share), 0, _LARGEST_SHARE)
        share = whole / 256
        apart = sums.energy - 2 * share * sums.product + share**2 * sums.earlier
        before_power = strength / count
        left_before = (np.maximum(apart, 0) + _LEANS * left_before) / count
        shares[context - 1], power[context - 1] = whole, before_power
        left[context] = left_before
        before_share = share
    return FittedRecall(
        shares=shares.astype(np.uint8),
        left=np.sqrt(left).astype(np.float32),
        power=np.sqrt(power).astype(np.float32),
    )


@dataclass(frozen=True, slots=True)
class _Sums:
    """Over pairs of rows, of each component: y^2, y v and v^2, v the earlier row's y."""

    energy: F64
    product: F64
    earlier: F64

    @classmethod
    def of(cls, components: F32, rows: I64, earlier: I64) -> _Sums:
        """Sums [D] over the pairs."""
        energy, product, power = np.zeros((3, components.shape[1]))
        for begin in range(0, len(rows), _PART):
            part = slice(begin, begin + _PART)
            y, v = components[rows[part]], components[earlier[part]]
            energy += np.einsum("nd,nd->d", y, y, dtype=np.float64)
            product += np.einsum("nd,nd->d", y, v, dtype=np.float64)
            power += np.einsum("nd,nd->d", v, v, dtype=np.float64)
        return cls(energy, product, power)

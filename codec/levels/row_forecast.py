"""A row of a session, forecast from its token and the row before it.

    x_i ~ P p(t_i) + Q x_(i-1) + c

p(t) is what the split's tables predict of a token (`SplitModel.predicted`). The cloud knows the
token that it answers with before the device has computed its row, so it can guess what follows
(`cloud.drafting.forecast_drafter`). Coding does not use it. A ridge regression over calibration
rows (`optimizer.export.calibration.forecast_fit`). Ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from codec.arrays import F32, U16, Arrays, widened
from codec.errors import TablesError
from codec.levels.split_model import SplitModel

_WEIGHTS: Final = "forecast.weights"
_MOST_BYTES: Final = 20 << 20  # in the tables: widths up to 2,048


def may_forecast(hidden_size: int) -> bool:
    """Whether the weights of so wide a model are small enough for its tables, and for a server."""
    return 2 * (2 * hidden_size + 1) * hidden_size <= _MOST_BYTES


@dataclass(frozen=True, kw_only=True)
class RowForecast:
    """See the module's docstring. split: of the same tables. halves: [2 D + 1, D], the bits of
    float16 values: P, Q and c beneath one another, for rows that are multiplied from the left."""

    split: SplitModel
    halves: U16

    @classmethod
    def of(cls, arrays: Arrays, split: SplitModel | None, hidden_size: int) -> RowForecast | None:
        """From a tables file's arrays; None: it has none. Raises TablesError."""
        halves = arrays.get(_WEIGHTS)
        if halves is None:
            return None
        fits = halves.dtype == np.uint16 and halves.shape == (2 * hidden_size + 1, hidden_size)
        if split is None or not fits or not may_forecast(hidden_size):
            raise TablesError(f"a forecast in the tables does not fit a width of {hidden_size}")
        return cls(split=split, halves=halves)

    @classmethod
    def fitted(cls, split: SplitModel, weights: F32) -> RowForecast:
        """From weights as fitted, [2 D + 1, D]."""
        limit = float(np.finfo(np.float16).max)
        halves = np.clip(weights, -limit, limit).astype(np.float16)
        return cls(split=split, halves=halves.view(np.uint16))

    def arrays(self) -> Arrays:
        """The arrays, as a tables file holds them."""
        return {_WEIGHTS: self.halves}

    @cached_property
    def _weights(self) -> F32:
        return widened(self.halves.view(np.float16))

    def rows(self, token_ids: Sequence[int], before: F32) -> F32:
        """Rows float32 [T, D] of tokens that follow one another behind the row `before`, [D].

        They may have NaN or infinity, where tables or rows drive them there.
        """
        width = len(before)
        by_token, by_row = self._weights[:width], self._weights[width : 2 * width]
        ids = np.asarray(token_ids, dtype=np.int64)
        with np.errstate(all="ignore"):
            found = self.split.predicted(ids) @ by_token + self._weights[-1]
            for row in found:
                row += before @ by_row
                before = row
        return np.asarray(found, dtype=np.float32)

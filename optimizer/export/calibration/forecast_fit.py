"""The forecast of a split's rows: a ridge regression on its token and the row before. Ours."""

from __future__ import annotations

from typing import Final

import numpy as np

from codec.levels.row_forecast import RowForecast, may_forecast
from codec.levels.split_model import SplitModel
from optimizer.export.calibration.split_fit import States, usual_rows

RIDGE: Final = 1e-3  # of the mean square of what is known
_PART: Final = 2048  # rows at a time


def fit_forecast(split: SplitModel, states: States) -> RowForecast | None:
    """Fitted to the states' rows that are no massive ones, nor behind one.

    None: there are too few for the width, or the weights would be too large.
    """
    width = states.hidden.shape[1]
    size = 2 * width + 1
    if not may_forecast(width):
        return None
    usual = usual_rows(states.hidden)
    usual[1:] &= usual[:-1].copy()
    usual[:: states.window] = False  # nothing is before a window's first row
    places = np.flatnonzero(usual)
    if len(places) < size:
        return None
    square = np.zeros((size, size), dtype=np.float32)
    crossed = np.zeros((size, width), dtype=np.float32)
    for begin in range(0, len(places), _PART):
        at = places[begin : begin + _PART]
        known = np.ones((len(at), size), dtype=np.float32)
        known[:, :width] = split.predicted(states.token_ids[at])
        known[:, width : 2 * width] = states.hidden[at - 1]
        square += known.T @ known
        crossed += known.T @ states.hidden[at]
    square[np.diag_indices(size)] += RIDGE * float(np.mean(square.diagonal()))
    return RowForecast.fitted(split, np.linalg.solve(square, crossed).astype(np.float32))

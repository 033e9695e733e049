"""Rows of a few tokens through a front that was just loaded, and how far they are from others."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge.device.front import FrontEngine
from optimizer.artifacts.half_front import TRIED_ALONE, TRIED_TOGETHER
from optimizer.artifacts.plan import Plan

Rows = npt.NDArray[np.float32]


def tried_rows(front: FrontEngine, token_ids: npt.NDArray[np.int64]) -> Rows:
    """Rows of these tokens [T]: all but the last few in one step, then one by one. The front is
    empty afterwards."""
    together = max(len(token_ids) - TRIED_ALONE, 1)
    parts = [front.forward(token_ids[:together])]
    parts += [front.forward(token_ids[at : at + 1]) for at in range(together, len(token_ids))]
    front.reset()
    return np.concatenate(parts)


def some_tokens(front: FrontEngine, plan: Plan) -> npt.NDArray[np.int64]:
    """Tokens that any model has, as many as are tried."""
    count = min(TRIED_TOGETHER + TRIED_ALONE, front.capacity)
    return (np.arange(1, count + 1, dtype=np.int64) * 7919) % plan.model.geometry.vocab_size


def row_difference(rows: Rows, expected: Rows) -> float:
    """The median over rows [T, D] of ||row - expected|| / ||expected||; NaN for rows that have no
    number."""
    if not np.isfinite(rows).all():
        return float("nan")
    lengths = np.linalg.norm(expected.astype(np.float64), axis=1)
    errors = np.linalg.norm(rows.astype(np.float64) - expected, axis=1)
    return float(np.median(errors / np.maximum(lengths, 1e-30)))

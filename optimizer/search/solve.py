"""The best configuration of a grid, lexicographically; and the Pareto front.

Exact: every configuration is looked at. Two values count as equal when they differ by less than
one part in 10^9, so that rounding does not decide between choices that mean the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from optimizer.search.grid import Grid
from optimizer.search.problem import Cell, Objective
from optimizer.search.rates import Floats
from optimizer.search.tables import Mask

TIE = 1e-9
PARETO_AXES = ("tbt", "cloud-cost", "edge-memory", "quality")

# What is compared when the objective is equal, in this order; all are to be small.
ORDER: Mapping[Objective, tuple[str, ...]] = {
    "tbt": ("tbt", "ttft", "quality", "cloud-cost", "edge-memory"),
    "ttft": ("ttft", "tbt", "quality", "cloud-cost", "edge-memory"),
    "cloud-cost": ("cloud-cost", "tbt", "ttft", "quality", "edge-memory"),
    "context": ("context", "tbt", "ttft", "quality", "cloud-cost", "edge-memory"),
    "quality": ("quality", "tbt", "ttft", "cloud-cost", "edge-memory"),
}
KEYS: Mapping[str, Callable[[Grid], Floats]] = {
    "tbt": lambda grid: grid.tbt_s,
    "ttft": lambda grid: grid.ttft_s,
    "cloud-cost": lambda grid: grid.tables.cloud_s_per_token,
    "context": lambda grid: -grid.max_tokens,
    "quality": lambda grid: grid.tables.quality_drop_pct,
    "edge-memory": lambda grid: grid.edge_memory_bytes,
}


def best(grid: Grid, mask: Mask) -> Cell | None:
    """The best configuration where `mask` [S, F, B, K, C, H, D] is true; None: it is nowhere."""
    order = ORDER[grid.problem.objective]
    # The first key decides between nearly all, on whole arrays; the others among what is left.
    first = np.broadcast_to(KEYS[order[0]](grid), mask.shape)
    masked = np.where(mask, first, np.inf)
    least = masked.min()
    if least == np.inf:
        return None
    left = np.argwhere(masked <= _with_ties(least))
    for name in order[1:]:
        if len(left) == 1:
            break
        values = np.broadcast_to(KEYS[name](grid), mask.shape)[tuple(left.T)]
        left = left[values <= _with_ties(values.min())]
    return Cell(*map(int, left[0]))


def value_of(grid: Grid, cell: Cell, key: str) -> float:
    """One configuration's value of one key."""
    values = np.broadcast_to(KEYS[key](grid), grid.problem.space.shape)
    return float(values[cell])


def pareto(grid: Grid, mask: Mask, axes: tuple[str, ...] = PARETO_AXES) -> list[Cell]:
    """The configurations that no other one beats in one of `axes` without losing in another,
    one for each distinct point, in rising order of the first axis."""
    cells = np.argwhere(mask)
    if not len(cells):
        return []
    where = tuple(cells.T)
    points = np.stack(
        [np.broadcast_to(KEYS[axis](grid), mask.shape)[where] for axis in axes], axis=1
    )
    order = np.lexsort(points.T[::-1])  # by the first axis, then the second, ...
    points, cells = points[order], cells[order]
    kept: list[int] = []
    alive = np.ones(len(points), dtype=bool)
    for index in range(len(points)):
        if not alive[index]:
            continue
        # In this order no later point beats an earlier one, so what is alive here is on the front.
        kept.append(index)
        alive &= ~(points >= points[index] - TIE * np.abs(points[index])).all(axis=1)
    return [Cell(*map(int, cells[index])) for index in kept]


def _with_ties(value: float) -> float:
    return float(value + TIE * abs(value))

"""The best configuration of a grid, lexicographically; and the Pareto front.

Exact: every configuration is looked at. The objective comes first, but configurations within
`Problem.slack` of its best value count as equally good and the one that loses least quality is
taken: no plan gives away percents of perplexity for a thousandth of a second. Otherwise two
values are equal when they differ by less than one part in 10^9, so that rounding does not decide
between choices that mean the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from hwprofiles.profiles.rates import Floats
from optimizer.search.grid import Grid
from optimizer.search.link_independent import Mask
from optimizer.search.problem import Cell, Objective

TIE = 1e-9
PARETO_AXES = ("tbt", "cloud-cost", "edge-memory", "quality")

# What is compared, in this order; all are to be small. The first one has the slack.
ORDER: Mapping[Objective, tuple[str, ...]] = {
    "tbt": ("tbt", "quality", "tbt", "ttft", "cloud-cost", "edge-memory"),
    "ttft": ("ttft", "quality", "ttft", "tbt", "cloud-cost", "edge-memory"),
    "cloud-cost": ("cloud-cost", "quality", "cloud-cost", "tbt", "ttft", "edge-memory"),
    "context": ("context", "quality", "context", "tbt", "ttft", "cloud-cost", "edge-memory"),
    "cost": ("cost", "quality", "cost", "tbt", "ttft", "edge-memory"),
    "quality": ("quality", "tbt", "ttft", "cloud-cost", "edge-memory"),
}
KEYS: Mapping[str, Callable[[Grid], Floats]] = {
    "tbt": lambda grid: grid.tbt_s,
    "ttft": lambda grid: grid.ttft_s,
    "cloud-cost": lambda grid: grid.cloud_s_per_token,
    "cost": lambda grid: grid.cost_per_million,
    "context": lambda grid: -grid.max_tokens,
    "quality": lambda grid: grid.fixed.quality_drop_pct,
    "edge-memory": lambda grid: grid.edge_memory_bytes,
}


def best(grid: Grid, mask: Mask) -> Cell | None:
    """The best configuration where `mask` [S, F, B, K, C, H, D] is true; None: it is nowhere."""
    order = ORDER[grid.problem.objective]
    # The first key decides between nearly all, on whole arrays; the others among what is left.
    first = np.broadcast_to(KEYS[order[0]](grid), mask.shape)
    masked = np.where(mask, first, np.inf)
    lowest = masked.min()
    if lowest == np.inf:
        return None
    left = np.argwhere(masked <= _with_ties(lowest, grid.problem.slack))
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
    """The Pareto front: configurations that no other one dominates in `axes`, one for each distinct
    point, in rising order of the first axis."""
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
        # In this order no later point dominates an earlier one: what remains is on the front.
        kept.append(index)
        alive &= ~(points >= points[index] - TIE * np.abs(points[index])).all(axis=1)
    return [Cell(*map(int, cells[index])) for index in kept]


def least(grid: Grid, mask: Mask) -> float:
    """The best value of the objective where `mask` is true; infinite when that is nowhere."""
    values = np.broadcast_to(KEYS[ORDER[grid.problem.objective][0]](grid), mask.shape)
    return float(values[mask].min()) if mask.any() else math.inf


def _with_ties(value: float, slack: float = 0.0) -> float:
    return float(value + max(TIE, slack) * abs(value))

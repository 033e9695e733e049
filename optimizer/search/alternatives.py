"""What else there was: everything in the cloud, everything on the device, the nearest splits.

A plan is one row of a table. A user who sees the rows beside it can tell whether a split is worth
having at all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from optimizer.artifacts.prediction import Limits
from optimizer.artifacts.prefill import PrefillPlace
from optimizer.cost.link import LinkPoint
from optimizer.search.grid import Grid
from optimizer.search.planner import Found, Planner
from optimizer.search.problem import Cell
from optimizer.search.solve import best, least, value_of


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanAlternative:
    """One configuration: the best there is at its split. Seconds, bytes, percent of perplexity.

    prefill: where the prompt is computed. cost_per_million_tokens: money, where there are prices.
    broken: the limits that it does not keep; then it is the fastest of those that break the fewest.
    """

    what: str
    split: int
    ttft_s: float
    tbt_s: float
    cloud_s_per_token: float
    uplink_bytes_per_token: float
    edge_memory_bytes: float
    quality_drop_pct: float
    prefill: PrefillPlace = "edge"
    cost_per_million_tokens: float | None = None
    broken: tuple[str, ...] = ()

    def is_better_everywhere(self, other: PlanAlternative) -> bool:
        """Whether no column of `other` is smaller, and one is larger."""
        mine, theirs = self._columns(), other._columns()
        return all(a <= b for a, b in zip(mine, theirs, strict=True)) and mine != theirs

    def _columns(self) -> tuple[float, ...]:
        return (
            self.ttft_s,
            self.tbt_s,
            self.cloud_s_per_token,
            self.uplink_bytes_per_token,
            self.edge_memory_bytes,
            self.quality_drop_pct,
            self.cost_per_million_tokens or 0.0,
        )


def alternatives(planner: Planner, link: LinkPoint, found: Found) -> tuple[PlanAlternative, ...]:
    """The plan first, then what it stands beside; each split once."""
    chosen = planner.split_of(found.cell)
    num_layers = planner.problem.geometry.num_layers
    rows = [_row("this plan", found.grid, found.cell)]
    for what, split in (("all in the cloud", 0), ("all on the device", num_layers)):
        if split != chosen:
            rows.append(_at(planner, link, found.grid.limits, what, split)[1])
    near = [s for s in (chosen - 1, chosen + 1) if 0 < s < num_layers]
    tried = [_at(planner, link, found.grid.limits, "the next best split", s) for s in near]
    if tried:
        rows.append(min(tried, key=lambda one: (len(one[1].broken), one[0]))[1])
    return tuple(rows)


def why(rows: tuple[PlanAlternative, ...], *, num_layers: int) -> str:
    """One sentence: what the split is good for, or that it is good for nothing."""
    chosen = rows[0]
    beside = {row.split: row for row in rows[1:]}
    if chosen.split == num_layers:
        return "The device holds every layer within the limits, so no server is needed."
    whole = _breaks("all layers on the device", beside.get(num_layers))
    if chosen.split == 0:
        return f"The server runs every layer and gets token ids: a split would not pay here{whole}."
    cloud = beside[0]
    if cloud.is_better_everywhere(chosen):
        return (
            "All in the cloud is better in every column: take that, unless the server's layers "
            f"must be fewer{whole}."
        )
    saved = 1 - chosen.cloud_s_per_token / cloud.cloud_s_per_token
    if saved > 0:
        return (
            f"The server works {100 * saved:.0f} % less for a token than with all layers in the "
            f"cloud{whole}{_breaks('all in the cloud', cloud)}."
        )
    return (
        "The server works no less than with all layers in the cloud; the objective asked for "
        f"something else{whole}."
    )


def _breaks(what: str, row: PlanAlternative | None) -> str:
    if row is None or not row.broken:
        return ""
    return f"; {what} would break the limit on {' and '.join(row.broken)}"


def _at(
    planner: Planner, link: LinkPoint, limits: Limits, what: str, split: int
) -> tuple[float, PlanAlternative]:
    """The objective and the row of the best configuration at one split."""
    problem = planner.problem
    space = replace(problem.space, splits=(split,))
    alone = Planner(replace(problem, space=space, limits=limits))
    grid = alone.grid(link)
    mask = grid.feasible()
    if not mask.any():  # then the fastest of those that break the fewest
        grid = Planner(replace(problem, space=space, limits=limits, objective="tbt")).grid(link)
        mask = _breaking_fewest(grid)
    cell = best(grid, mask)
    if cell is None:
        raise ValueError(f"no configuration at split {split}")
    return least(grid, mask), _row(what, grid, cell)


def _breaking_fewest(grid: Grid) -> npt.NDArray[np.bool_]:
    """The configurations that break as few limits as possible."""
    shape = grid.problem.space.shape
    broken = np.zeros(shape, dtype=np.int64)
    for constraint in grid.constraints:
        broken += ~np.broadcast_to(constraint.kept, shape)
    exists = np.broadcast_to(grid.fixed.exists, shape)
    fewest: npt.NDArray[np.bool_] = exists & (broken == broken[exists].min())
    return fewest


def _row(what: str, grid: Grid, cell: Cell) -> PlanAlternative:
    problem = grid.problem
    shape = problem.space.shape
    return PlanAlternative(
        what=what,
        split=grid.problem.space.splits[cell.split],
        ttft_s=value_of(grid, cell, "ttft"),
        tbt_s=value_of(grid, cell, "tbt"),
        cloud_s_per_token=value_of(grid, cell, "cloud-cost"),
        uplink_bytes_per_token=float(np.broadcast_to(grid.uplink_bytes_per_token, shape)[cell]),
        edge_memory_bytes=value_of(grid, cell, "edge-memory"),
        quality_drop_pct=value_of(grid, cell, "quality"),
        prefill=grid.prefill_of(cell),
        cost_per_million_tokens=value_of(grid, cell, "cost") if problem.has_cost else None,
        broken=tuple(
            constraint.name
            for constraint in grid.constraints
            if not np.broadcast_to(constraint.kept, shape)[cell]
        ),
    )

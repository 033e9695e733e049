"""Put one problem to many links and limits: the tables are computed once and kept.

This is what re-planning when the link changed costs: a grid of additions and one selection.
"""

from __future__ import annotations

from typing import NamedTuple

from optimizer.artifacts.prediction import Limits
from optimizer.cost.link import LinkPoint
from optimizer.search.grid import Grid
from optimizer.search.link_independent import LinkIndependent
from optimizer.search.problem import Cell, Problem
from optimizer.search.solve import best, least


class Found(NamedTuple):
    """A best configuration, the best value of the objective (small is good; the configuration's
    own may be the problem's slack away from it), and the grid."""

    cell: Cell
    value: float
    grid: Grid


class Planner:
    """A problem with its tables. Raises ProfileError where a device has no kernel for a choice."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.fixed = LinkIndependent(problem)

    def grid(self, link: LinkPoint, limits: Limits | None = None) -> Grid:
        """Predictions of every configuration over `link`; `limits` in place of the problem's."""
        return Grid(self.fixed, link, limits)

    def solve(self, link: LinkPoint, limits: Limits | None = None) -> Found | None:
        """The best configuration over `link`; None when no configuration keeps the limits."""
        grid = self.grid(link, limits)
        mask = grid.feasible()
        cell = best(grid, mask)
        return None if cell is None else Found(cell, least(grid, mask), grid)

    def split_of(self, cell: Cell) -> int:
        """Layers on the edge."""
        return self.problem.space.splits[cell.split]

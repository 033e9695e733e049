"""Limits that have to be kept with a probability: what predictions are multiplied by beforehand.

With `Limits.quantile` q a limit is held against the quantile q of what will be measured
(`optimizer.cost.uncertainty`). The slowest step has the relative error of the step in the middle of
the answer. Ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from hwprofiles.profiles.rates import Quantity
from optimizer.cost.uncertainty import error_of_kind, quantile_factor

if TYPE_CHECKING:
    from optimizer.search.grid import Grid


class SafetyFactors(NamedTuple):
    """Factors of a grid's time to the first token, time between tokens and memory of the device,
    with the axes of each."""

    ttft: Quantity
    tbt: Quantity
    edge_memory: float


NO_SAFETY: Final = SafetyFactors(1.0, 1.0, 1.0)


def safety_factors(grid: Grid) -> SafetyFactors:
    """The factors for the quantile of the grid's limits."""
    quantile = grid.limits.quantile
    return SafetyFactors(
        grid.errors("many_rows").factor(quantile, grid.ttft_terms, grid.ttft_s),
        grid.errors("one_row").factor(quantile, grid.tbt_terms, grid.tbt_s),
        quantile_factor(quantile, error_of_kind(grid.problem.edge, "memory")),
    )

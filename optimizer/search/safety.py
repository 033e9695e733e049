"""Limits that have to be kept with a probability: what predictions are multiplied by beforehand.

With `Limits.quantile` q a limit is held against the quantile q of what will be measured
(`optimizer.cost.uncertainty`). The slowest step has the relative error of the step in the middle of
the answer. Ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from hwprofiles.profiles.rates import Quantity
from optimizer.cost.energy import with_energy_error, with_power_error
from optimizer.cost.uncertainty import error_of_kind, quantile_factor

if TYPE_CHECKING:
    from optimizer.search.grid import Grid


class SafetyFactors(NamedTuple):
    """Factors of a grid's time to the first token, time between tokens, memory and energy of the
    device, and cost, with the axes of each."""

    ttft: Quantity
    tbt: Quantity
    edge_memory: float
    joules: Quantity = 1.0
    cost: Quantity = 1.0


NO_SAFETY: Final = SafetyFactors(1.0, 1.0, 1.0)


def safety_factors(grid: Grid) -> SafetyFactors:
    """The factors for the quantile of the grid's limits."""
    limits, edge = grid.limits, grid.problem.edge
    quantile, errors = limits.quantile, grid.errors("one_row")
    of_energy = limits.max_joules_per_token is not None
    of_cost = limits.max_cost_per_million is not None
    return SafetyFactors(
        grid.errors("many_rows").factor(quantile, grid.ttft_terms, grid.ttft_s),
        errors.factor(quantile, grid.tbt_terms, grid.tbt_s),
        quantile_factor(quantile, error_of_kind(edge, "memory")),
        with_power_error(errors, edge).factor(quantile, grid.joule_terms, grid.joules_per_token)
        if of_energy
        else 1.0,
        with_energy_error(errors, edge).factor(quantile, grid.cost_terms, grid.cost_per_million)
        if of_cost
        else 1.0,
    )

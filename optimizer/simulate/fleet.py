"""How many servers a load needs: the fewest with which the budget is kept, found by simulation.

The number is doubled until the budget holds, and then the gap is halved. Every try is the whole
scenario, so the load's highest hour counts. More servers than clients change nothing. That fewer
servers keep a budget less often is assumed, not proved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from optimizer.errors import ScenarioError
from optimizer.simulate.assemble import Inputs, with_servers
from optimizer.simulate.budget import InTime, in_time
from optimizer.simulate.measures import Measures, measure
from optimizer.simulate.replicate import replicate

MAX_SERVERS: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPoint(InTime):
    """One try. cost_per_million_tokens: of the servers' hours, by the scenario's price."""

    num_servers: int
    ttft_p95_s: float
    tbt_p95_s: float
    server_utilisation: float
    cost_per_million_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSize:
    """The answer, and every try in rising order."""

    num_servers: int
    tried: tuple[FleetPoint, ...]


def fleet_size(
    inputs: Inputs,
    *,
    replications: int = 1,
    processes: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> FleetSize:
    """The fewest servers that keep the scenario's budget; `progress` is told each number tried.

    A server that a fault names is among them. replications: pooled, as in the run that follows.
    Raises ScenarioError without a budget, without a server in the plan, where their number scales,
    and where a server for each client does not keep the budget either.
    """
    budget = inputs.scenario.budget
    if budget.ttft_s is None and budget.tbt_s is None:
        raise ScenarioError("servers auto: needs a budget for the first or the further tokens")
    if inputs.scenario.servers.scaling is not None:
        raise ScenarioError("servers auto: the number of these servers scales by itself")
    if inputs.plan.edge_is_whole:
        raise ScenarioError("servers auto: this plan has no server, the device holds every layer")
    faults = inputs.scenario.faults
    least = max((fault.server for fault in faults if fault.kind == "server_loss"), default=0) + 1
    most = max(min(inputs.scenario.num_clients, MAX_SERVERS), least)
    points: dict[int, FleetPoint] = {}

    def keeps(count: int) -> bool:
        progress(count)
        one = replace(inputs, scenario=with_servers(inputs.scenario, count))
        [records] = replicate([one.setup()], replications=replications, processes=processes)
        points[count] = _point(one, count, measure(one.scenario, records))
        return points[count].kept

    low, high = least - 1, least
    while not keeps(high):
        if high == most:
            raise ScenarioError(_never(points[high]))
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return FleetSize(num_servers=high, tried=tuple(points[count] for count in sorted(points)))


def _point(inputs: Inputs, count: int, found: Measures) -> FleetPoint:
    return FleetPoint(
        num_servers=count,
        ttft_p95_s=found.ttft_s.p95,
        tbt_p95_s=found.tbt_s.p95,
        server_utilisation=found.server_utilisation,
        cost_per_million_tokens=found.cost_per_million_tokens,
        **in_time(inputs.scenario.budget, found),
    )


def _never(point: FleetPoint) -> str:
    return (
        f"servers auto: with {point.num_servers:,} servers, as many as there are clients, "
        f"{point.first_in_time:.0%} of first and {point.further_in_time:.0%} of further tokens "
        "come in time: servers are not what is slow"
    )

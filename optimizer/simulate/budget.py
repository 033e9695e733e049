"""Three questions about a budget, answered by simulation: how many clients, which link, what helps.

The budget is kept when enough of the first tokens and enough of the further ones come in time, each
against its own limit and share (see `scenario.Budget` and `measures.Measures`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from optimizer.simulate.assemble import Inputs, front_splits_at, with_clients, with_servers
from optimizer.simulate.measures import Measures, measure
from optimizer.simulate.replicate import replicate
from optimizer.simulate.scenario import Budget
from optimizer.simulate.setup import BESIDE_THE_LADDER

QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
# The three questions, in the order in which they are answered.
STAGES: Final = ("how many clients", "which link", "what to change")
SEARCH_S: Final = 60.0  # longest simulated time of one try
MAX_CLIENTS: Final = 100_000
MAX_EVENTS: Final = 1_000_000  # of one try; a larger one is not doubled
PRECISION: Final = 0.03  # the number of clients is found to within this share


@dataclass(frozen=True, slots=True, kw_only=True)
class InTime:
    """Shares of tokens in time in one try; the names are those of `measures.Measures`."""

    first_in_time: float
    further_in_time: float
    within_budget: float
    kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint(InTime):
    """One try of the search for the number of clients."""

    num_clients: int
    ttft_p95_s: float
    tbt_p95_s: float
    server_utilisation: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantilePoint(InTime):
    """The budget on a link held at a quantile (0.95: as bad as one time in twenty)."""

    quantile: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Change(InTime):
    """What one change does to the budget."""

    name: str
    ttft_p95_s: float
    tbt_p95_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetView:
    """The answers.

    `clients_carried`: 0 when even one client breaks the budget. `at_least`: the search ended before
    the budget broke. `breaks_at`: the mildest of QUANTILES that breaks it.
    """

    kept: bool
    clients_carried: int
    at_least: bool
    clients_per_server: float
    curve: tuple[CurvePoint, ...]
    breaks_at: float | None
    quantiles: tuple[QuantilePoint, ...]
    changes: tuple[Change, ...]


def budget_view(
    inputs: Inputs,
    base: Measures,
    *,
    processes: int | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> BudgetView:
    """Answer the three questions for a scenario whose own measures are `base`."""
    short = replace(
        inputs,
        scenario=replace(
            inputs.scenario,
            duration_s=min(inputs.scenario.duration_s, SEARCH_S),
            drain_s=min(inputs.scenario.drain_s, SEARCH_S / 3),
        ),
    )

    def tried(many: Sequence[Inputs]) -> list[Measures]:
        setups = [one.setup() for one in many]
        found = replicate(setups, processes=processes)
        return [measure(one.scenario, records) for one, records in zip(many, found, strict=True)]

    budget = inputs.scenario.budget
    progress(STAGES[0])
    curve, carried, at_least = _search(short, tried)
    progress(STAGES[1])
    held = [_held_at(short, quantile) for quantile in QUANTILES]
    points = tuple(
        QuantilePoint(quantile=quantile, **in_time(budget, found))
        for quantile, found in zip(QUANTILES, tried(held), strict=True)
    )
    progress(STAGES[2])
    names, changed = zip(*_changes(short), strict=True)
    changes = tuple(
        Change(
            name=name,
            ttft_p95_s=found.ttft_s.p95,
            tbt_p95_s=found.tbt_s.p95,
            **in_time(budget, found),
        )
        for name, found in zip(names, tried(changed), strict=True)
    )
    return BudgetView(
        kept=budget.kept_by(base.first_in_time, base.further_in_time),
        clients_carried=carried,
        at_least=at_least,
        clients_per_server=carried / inputs.scenario.servers.count,
        curve=curve,
        breaks_at=next((point.quantile for point in points if not point.kept), None),
        quantiles=points,
        changes=changes,
    )


def in_time(budget: Budget, found: Measures) -> dict[str, Any]:
    """The fields of InTime."""
    return {
        "first_in_time": found.first_in_time,
        "further_in_time": found.further_in_time,
        "within_budget": found.within_budget,
        "kept": budget.kept_by(found.first_in_time, found.further_in_time),
    }


def _search(
    inputs: Inputs, tried: Callable[[Sequence[Inputs]], list[Measures]]
) -> tuple[tuple[CurvePoint, ...], int, bool]:
    """Double the clients until the budget breaks, then halve the gap.

    Returns the tries, the most clients that keep the budget, and whether the budget never broke.
    """
    points: dict[int, CurvePoint] = {}
    events: dict[int, int] = {}

    def keeps(num_clients: int) -> bool:
        if num_clients not in points:
            one = replace(inputs, scenario=with_clients(inputs.scenario, num_clients))
            [found] = tried([one])
            events[num_clients] = found.events
            points[num_clients] = CurvePoint(
                num_clients=num_clients,
                ttft_p95_s=found.ttft_s.p95,
                tbt_p95_s=found.tbt_s.p95,
                server_utilisation=found.server_utilisation,
                **in_time(inputs.scenario.budget, found),
            )
        return points[num_clients].kept

    low = least = len(inputs.scenario.clients)  # a group keeps one client
    if not keeps(least):
        return tuple(points.values()), 0, False
    high = max(inputs.scenario.num_clients, 2 * least)
    while keeps(high):
        low = high
        alone = inputs.plan.edge_is_whole  # clients do not affect each other
        if alone or high >= MAX_CLIENTS or events[high] >= MAX_EVENTS:
            return _in_order(points), high, True
        high = min(2 * high, MAX_CLIENTS)
    while high - low > max(1, PRECISION * low):
        middle = (low + high) // 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return _in_order(points), low, False


def _in_order(points: dict[int, CurvePoint]) -> tuple[CurvePoint, ...]:
    return tuple(points[number] for number in sorted(points))


def _held_at(inputs: Inputs, quantile: float) -> Inputs:
    groups = tuple(
        replace(group, link=replace(group.link, quantile=quantile))
        for group in inputs.scenario.clients
    )
    return replace(inputs, scenario=replace(inputs.scenario, clients=groups))


def _changes(inputs: Inputs) -> Iterator[tuple[str, Inputs]]:
    """As it is, and the changes worth a try: split, level, drafting, one more server."""
    scenario, plan = inputs.scenario, inputs.plan
    yield "as planned", inputs
    num_layers, split = plan.model.geometry.num_layers, plan.partition.split
    step = max(1, num_layers // 6)
    for other in (split - step, split + step):
        if 0 < other < num_layers:
            partition = replace(plan.partition, split=other)
            yield (
                f"split {other}",
                replace(
                    inputs,
                    plan=replace(
                        plan,
                        partition=partition,
                        back_start=other if plan.back_start else 0,
                        front_layer_bits=(),
                        front_splits=front_splits_at(plan, other),
                    ),
                ),
            )
    levels = inputs.setup().levels
    now_bits = levels[plan.level].bits_per_element
    coarser = [
        (-level.bits_per_element, name)
        for name, level in levels.items()
        if level.bits_per_element < now_bits and name not in BESIDE_THE_LADDER
    ]
    for _, name in sorted(coarser)[:2]:
        yield f"level {name}", replace(inputs, plan=replace(plan, level=name))
    if plan.edge_is_whole:
        return
    if plan.drafting == "off":
        yield "drafting ngram", replace(inputs, plan=replace(plan, drafting="ngram"))
    more = with_servers(scenario, scenario.servers.count + 1)
    yield "one more server", replace(inputs, scenario=more)

"""What a simulation found, as tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from optimizer.simulate.budget import BudgetView
from optimizer.simulate.error_ranges import LatencyRanges
from optimizer.simulate.fleet import FleetSize
from optimizer.simulate.measures import Measures
from optimizer.simulate.report.files import Findings
from optimizer.simulate.report.page import MEDIAN_RANGE
from optimizer.simulate.scenario import Scenario
from optimizer.simulate.sweep import SweepPoint
from splitpoint.views.screen import open_console


def print_findings(findings: Findings) -> None:
    """Print latencies, where the time goes and what the servers did; then budget and sweep."""
    screen = open_console()
    _print_measures(screen, findings.scenario, findings.measures, findings.ranges)
    if findings.fleet is not None:
        _print_fleet(screen, findings.fleet)
    if findings.budget is not None:
        _print_budget(screen, findings.budget)
    if findings.sweep:
        _print_sweep(screen, findings.sweep)


def _print_budget(screen: Console, view: BudgetView) -> None:
    carried = f"{'at least ' * view.at_least}{view.clients_carried:,}"
    screen.print(
        f"budget            {'kept' if view.kept else 'broken'}; the servers carry {carried} "
        f"clients, {view.clients_per_server:,.1f} each"
    )
    if view.breaks_at is None:
        screen.print("link              no quantile that was tried breaks the budget")
    else:
        screen.print(f"link              breaks the budget at its {view.breaks_at:.0%} quantile")
    table = Table("", "in time", "TTFT p95", "TBT p95", "budget", title="What to change")
    for change in view.changes:
        table.add_row(
            change.name,
            f"{change.within_budget:.1%}",
            seconds(change.ttft_p95_s),
            seconds(change.tbt_p95_s),
            "kept" if change.kept else "broken",
        )
    screen.print(table)


def _print_fleet(screen: Console, fleet: FleetSize) -> None:
    head = ("servers", "in time", "TTFT p95", "TBT p95", "busy", "cost a million tokens", "budget")
    table = Table(*head, title="How many servers")
    for point in fleet.tried:
        table.add_row(
            f"{point.num_servers:,}",
            f"{point.within_budget:.1%}",
            seconds(point.ttft_p95_s),
            seconds(point.tbt_p95_s),
            f"{point.server_utilisation:.0%}",
            f"{point.cost_per_million_tokens:,.2f}",
            "kept" if point.kept else "broken",
        )
    screen.print(table)


def _print_sweep(screen: Console, points: tuple[SweepPoint, ...]) -> None:
    table = Table("", "TTFT p50", "p95", "TBT p50", "p95", "in time", "busy", title="Sweep")
    for point in points:
        found = point.measures
        table.add_row(
            point.label,
            seconds(found.ttft_s.p50),
            seconds(found.ttft_s.p95),
            seconds(found.tbt_s.p50),
            seconds(found.tbt_s.p95),
            f"{found.within_budget:.1%}",
            f"{found.server_utilisation:.0%}",
        )
    screen.print(table)


def _print_measures(
    screen: Console, scenario: Scenario, measures: Measures, ranges: LatencyRanges | None
) -> None:
    asked = measures.requests["asked"]
    screen.print(
        f"{scenario.name}: {measures.clients:,} clients, {measures.servers} server"
        f"{'s' * (measures.servers > 1)}, {measures.duration_s:g} s, "
        f"{asked:,} requests, {measures.tokens:,} tokens "
        f"({measures.events:,} events in {measures.wall_s:.1f} s)"
    )
    table = Table("", "p50", MEDIAN_RANGE, "p95", "p99", "budget", title="Latency (simulated)")
    rows = (
        (
            "first token",
            measures.ttft_s,
            None if ranges is None else ranges.ttft_s,
            scenario.budget.ttft_s,
        ),
        (
            "between tokens",
            measures.tbt_s,
            None if ranges is None else ranges.tbt_s,
            scenario.budget.tbt_s,
        ),
        ("whole answer", measures.e2e_s, None, None),
    )
    for name, spread, sure, budget in rows:
        table.add_row(
            name,
            seconds(spread.p50),
            "" if sure is None else f"{seconds(sure.p10)} to {seconds(sure.p90)}",
            seconds(spread.p95),
            seconds(spread.p99),
            "" if budget is None else seconds(budget),
        )
    screen.print(table)
    parts = Table("", *measures.breakdown_step_s, title="Where the time goes (means)")
    parts.add_row("first token", *map(seconds, measures.breakdown_first_s.values()))
    parts.add_row("step", *map(seconds, measures.breakdown_step_s.values()))
    screen.print(parts)
    figures = Table("", "", title="Servers and bytes", show_header=False)
    for row in measures.for_people():
        figures.add_row(*row)
    for row in [] if ranges is None else ranges.energy_rows(measures.no_sensor):
        figures.add_row(*row)
    screen.print(figures)


def seconds(value: float) -> str:
    """A duration for people: `1.23 s`, `45.6 ms`, `7 us`."""
    if value >= 100:
        return f"{value:,.0f} s"
    if value >= 1:
        return f"{value:.2f} s"
    if value >= 1e-3:
        return f"{1e3 * value:.1f} ms"
    return f"{1e6 * value:.0f} us" if value > 5e-7 else "0"

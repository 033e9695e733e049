"""The HTML page: tables and pictures in one file, light or dark, phone or desk, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from optimizer.simulate.budget import SEARCH_S, BudgetView
from optimizer.simulate.error_ranges import LatencyRanges
from optimizer.simulate.measures import Measures
from optimizer.simulate.report.charts import Chart
from optimizer.simulate.report.draw import DARK, LIGHT, svg
from optimizer.simulate.report.tables import (
    TABLE_STYLE,
    facts,
    limit,
    share,
    share_of_wanted,
    table,
    time,
    verdict,
)
from optimizer.simulate.scenario import Scenario
from optimizer.simulate.sweep import SweepPoint

MEDIAN_RANGE: Final = "p50, by the profiles' errors"  # a column's head: p10 to p90
STYLE: Final = """
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; background: var(--back); color: var(--ink);
  font: 16px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.1rem; margin: 1.6rem 0 .5rem; }
p { margin: .4rem 0; } .soft { color: var(--soft); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 1rem; }
figure { margin: 0; padding: .8rem; background: var(--card); border: 1px solid var(--rule);
  border-radius: .5rem; }
figcaption { font-weight: 600; margin-bottom: .4rem; }
svg { width: 100%; height: auto; display: block; }
svg text { font-family: system-ui, sans-serif; }
"""


def page(
    scenario: Scenario,
    measures: Measures,
    charts: Sequence[Chart],
    *,
    subject: Mapping[str, str],
    budget: BudgetView | None = None,
    sweep: Sequence[SweepPoint] = (),
    ranges: LatencyRanges | None = None,
) -> str:
    """The whole document as text. subject: what was simulated, in words. ranges: how sure the
    medians are."""
    sections = [_summary(scenario, measures, subject)]
    if budget is not None:
        sections.append(_budget(scenario, budget))
    figures = "".join(
        f"<figure><figcaption>{escape(chart.title)}</figcaption>{svg(chart)}</figure>"
        for chart in charts
    )
    sections.append(f'<h2>Pictures</h2><div class="figures">{figures}</div>')
    if sweep:
        sections.append(_sweep(sweep))
    sections.append(_latencies(measures, ranges))
    sections.append(_servers(measures, ranges))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(scenario.name)}: simulated latency</title>"
        f"<style>{_colours()}{STYLE}{TABLE_STYLE}</style></head>"
        f"<body>{''.join(sections)}</body></html>\n"
    )


def _colours() -> str:
    """The page's colours as CSS variables, light and dark."""

    def variables(back: str, colours: Mapping[str, str]) -> str:
        named = " ".join(f"--{name}: {colour};" for name, colour in colours.items())
        return f":root {{ color-scheme: light dark; --back: {back}; {named} }}"

    dark = variables("#141416", DARK)
    return f"{variables('#fbfbfa', LIGHT)}\n@media (prefers-color-scheme: dark) {{ {dark} }}"


def _summary(scenario: Scenario, measures: Measures, subject: Mapping[str, str]) -> str:
    described = f"<p>{escape(scenario.description)}</p>" if scenario.description else ""
    asked = measures.requests["asked"]
    return (
        f"<h1>{escape(scenario.name)}</h1>{described}{facts(subject)}"
        f'<p class="soft">Simulated: {measures.clients:,} clients, {measures.servers} '
        f"server{'s' * (measures.servers > 1)}, {measures.duration_s:g} s, seed {measures.seed}, "
        f"{measures.replications} replication{'s' * (measures.replications > 1)}. {asked:,} "
        f"requests, {measures.tokens:,} tokens.</p>{_verdict(scenario, measures)}"
    )


def _verdict(scenario: Scenario, measures: Measures) -> str:
    """The budget limit by limit; without limits, what came at all."""
    budget = scenario.budget
    limits = (
        ("first token", budget.ttft_s, measures.first_in_time, budget.first_share),
        ("between tokens", budget.tbt_s, measures.further_in_time, budget.further_share),
    )
    rows = [
        (
            f"{name} {limit(limit_s)}",
            share_of_wanted(came, wanted),
            f"{100 * wanted:g}%",
            verdict(came >= wanted),
        )
        for name, limit_s, came, wanted in limits
        if limit_s is not None
    ]
    if not rows:
        return (
            f"<p>No budget was given. {share(measures.first_in_time)} of the requests got a first "
            f"token, and {share(measures.further_in_time)} of the further tokens came.</p>"
        )
    return "<h2>Verdict</h2>" + table(("limit", "in time", "wanted", "budget"), rows)


def _budget(scenario: Scenario, view: BudgetView) -> str:
    carried = f"{view.clients_carried:,}"
    if view.at_least:
        carried = f"at least {carried}"
    if view.breaks_at is None:
        link = "No link quantile that was tried breaks it."
    else:
        link = f"It breaks on a link held at its {view.breaks_at:.0%} quantile."
    changes = [
        (
            escape(change.name),
            share(change.first_in_time),
            share(change.further_in_time),
            time(change.ttft_p95_s),
            time(change.tbt_p95_s),
            verdict(change.kept),
        )
        for change in view.changes
    ]
    quantiles = [
        (
            f"{point.quantile:.0%}",
            share(point.first_in_time),
            share(point.further_in_time),
            verdict(point.kept),
        )
        for point in view.quantiles
    ]
    tried_s = min(scenario.duration_s, SEARCH_S)
    many = scenario.servers.count > 1
    clients = (
        f"The server{'s carry' if many else ' carries'} <strong>{carried}</strong> clients"
        + (f" ({view.clients_per_server:,.1f} each)." if many else ".")
        if view.clients_carried
        else "The fewest clients that this scenario can have break it."
    )
    return (
        f"<h2>What would keep the budget</h2><p>{clients} {link} "
        f"Every try is {tried_s:g} s long.</p>"
        + table(
            ("change", "first in time", "further in time", "TTFT p95", "TBT p95", "budget"), changes
        )
        + table(("link quantile", "first in time", "further in time", "budget"), quantiles)
    )


def _sweep(points: Sequence[SweepPoint]) -> str:
    rows = [
        (
            escape(point.label),
            time(point.measures.ttft_s.p50),
            time(point.measures.ttft_s.p95),
            time(point.measures.tbt_s.p50),
            time(point.measures.tbt_s.p95),
            share(point.measures.within_budget),
            f"{point.measures.server_utilisation:.0%}",
        )
        for point in points
    ]
    head = ("sweep", "TTFT p50", "TTFT p95", "TBT p50", "TBT p95", "in time", "server busy")
    return "<h2>Sweep</h2>" + table(head, rows)


def _latencies(measures: Measures, ranges: LatencyRanges | None) -> str:
    rows = [
        (
            name,
            time(spread.p50),
            "" if sure is None else f"{time(sure.p10)} to {time(sure.p90)}",
            time(spread.p95),
            time(spread.p99),
        )
        for name, spread, sure in (
            ("first token", measures.ttft_s, None if ranges is None else ranges.ttft_s),
            ("between tokens", measures.tbt_s, None if ranges is None else ranges.tbt_s),
            ("whole answer", measures.e2e_s, None),
        )
    ]
    parts = [
        (part, time(measures.breakdown_first_s[part]), time(measures.breakdown_step_s[part]))
        for part in measures.breakdown_step_s
    ]
    return (
        "<h2>Latency</h2>"
        + table(("", "p50", MEDIAN_RANGE, "p95", "p99"), rows)
        + table(("part (mean)", "first token", "each step"), parts)
    )


def _servers(measures: Measures, ranges: LatencyRanges | None) -> str:
    energy = [] if ranges is None else ranges.energy_rows(measures.no_sensor)
    return "<h2>Servers and bytes</h2>" + table(("", ""), [*measures.for_people(), *energy])

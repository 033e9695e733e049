"""The HTML page: tables and pictures in one file, light or dark, phone or desk, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from optimizer.simulate.budget import BudgetView
from optimizer.simulate.measures import Measures
from optimizer.simulate.report.charts import Chart
from optimizer.simulate.report.draw import DARK, LIGHT, svg
from optimizer.simulate.scenario import Scenario
from optimizer.simulate.sweep import SweepPoint

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
.scroll { overflow-x: auto; margin-bottom: 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--rule); text-align: right;
  white-space: nowrap; } th:first-child, td:first-child { text-align: left; }
@media (max-width: 30rem) { body { padding: .6rem; } table { font-size: .85rem; }
  th, td { padding: .25rem .3rem; } }
.kept { color: var(--p5); } .broken { color: var(--limit); }
"""


def page(
    scenario: Scenario,
    measures: Measures,
    charts: Sequence[Chart],
    *,
    budget: BudgetView | None = None,
    sweep: Sequence[SweepPoint] = (),
) -> str:
    """The whole document as text."""
    sections = [_summary(scenario, measures)]
    if budget is not None:
        sections.append(_budget(scenario, budget))
    figures = "".join(
        f"<figure><figcaption>{escape(chart.title)}</figcaption>{svg(chart)}</figure>"
        for chart in charts
    )
    sections.append(f'<h2>Pictures</h2><div class="figures">{figures}</div>')
    if sweep:
        sections.append(_sweep(sweep))
    sections.append(_latencies(scenario, measures))
    sections.append(_servers(measures))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(scenario.name)}: simulated latency</title>"
        f"<style>{_colours()}{STYLE}</style></head>"
        f"<body>{''.join(sections)}</body></html>\n"
    )


def _colours() -> str:
    """The page's colours as CSS variables, light and dark."""

    def variables(back: str, colours: Mapping[str, str]) -> str:
        named = " ".join(f"--{name}: {colour};" for name, colour in colours.items())
        return f":root {{ color-scheme: light dark; --back: {back}; {named} }}"

    dark = variables("#141416", DARK)
    return f"{variables('#fbfbfa', LIGHT)}\n@media (prefers-color-scheme: dark) {{ {dark} }}"


def _summary(scenario: Scenario, measures: Measures) -> str:
    described = f"<p>{escape(scenario.description)}</p>" if scenario.description else ""
    asked = measures.requests["asked"]
    return (
        f"<h1>{escape(scenario.name)}</h1>{described}"
        f'<p class="soft">Simulated: {measures.clients:,} clients, {measures.servers} '
        f"server{'s' * (measures.servers > 1)}, {measures.duration_s:g} s, seed {measures.seed}, "
        f"{measures.replications} replication{'s' * (measures.replications > 1)}. {asked:,} "
        f"requests, {measures.tokens:,} tokens.</p>"
        f"<p>{_budget_line(scenario, measures)}</p>"
    )


def _budget_line(scenario: Scenario, measures: Measures) -> str:
    limits = [
        f"{name} {1e3 * limit:g} ms"
        for name, limit in (
            ("first token", scenario.budget.ttft_s),
            ("between tokens", scenario.budget.tbt_s),
        )
        if limit is not None
    ]
    share = (
        f"<strong>{measures.first_in_time:.1%}</strong> of first tokens and "
        f"<strong>{measures.further_in_time:.1%}</strong> of further tokens in time"
    )
    if not limits:
        return f"{share} (no budget given: only requests without any token count as late)."
    return f"{share} (budget: {', '.join(limits)}; wanted {scenario.budget.share:.0%})."


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
            change.name,
            f"{change.within_budget:.1%}",
            _time(change.ttft_p95_s),
            _time(change.tbt_p95_s),
            _kept(change.kept),
        )
        for change in view.changes
    ]
    quantiles = [
        (f"{point.quantile:.0%}", f"{point.within_budget:.1%}", _kept(point.kept))
        for point in view.quantiles
    ]
    return (
        f"<h2>The budget</h2><p>{_kept(view.kept)} as planned. The server"
        f"{'s' * (scenario.servers.count > 1)} carr{'y' if scenario.servers.count > 1 else 'ies'} "
        f"<strong>{carried}</strong> clients ({view.clients_per_server:,.1f} each). {link}</p>"
        + _table(("change", "in time", "TTFT p95", "TBT p95", "budget"), changes)
        + _table(("link quantile", "in time", "budget"), quantiles)
    )


def _sweep(points: Sequence[SweepPoint]) -> str:
    rows = [
        (
            escape(point.label),
            _time(point.measures.ttft_s.p50),
            _time(point.measures.ttft_s.p95),
            _time(point.measures.tbt_s.p50),
            _time(point.measures.tbt_s.p95),
            f"{point.measures.within_budget:.1%}",
            f"{point.measures.server_utilisation:.0%}",
        )
        for point in points
    ]
    head = ("sweep", "TTFT p50", "p95", "TBT p50", "p95", "in time", "server busy")
    return "<h2>Sweep</h2>" + _table(head, rows)


def _latencies(scenario: Scenario, measures: Measures) -> str:
    rows = [
        (name, _time(spread.p50), _time(spread.p95), _time(spread.p99))
        for name, spread in (
            ("first token", measures.ttft_s),
            ("between tokens", measures.tbt_s),
            ("whole answer", measures.e2e_s),
        )
    ]
    parts = [
        (part, _time(measures.breakdown_first_s[part]), _time(measures.breakdown_step_s[part]))
        for part in measures.breakdown_step_s
    ]
    return (
        "<h2>Latency</h2>"
        + _table(("", "p50", "p95", "p99"), rows)
        + _table(("part (mean)", "first token", "each step"), parts)
    )


def _servers(measures: Measures) -> str:
    return "<h2>Servers and bytes</h2>" + _table(("", ""), measures.for_people())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already."""
    header = "".join(f"<th>{name}</th>" for name in head) if any(head) else ""
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{header}</tr>{body}</table></div>'


def _kept(kept: bool) -> str:
    return '<span class="kept">kept</span>' if kept else '<span class="broken">broken</span>'


def _time(seconds: float) -> str:
    if seconds >= 10:
        return f"{seconds:,.1f} s"
    return f"{1e3 * seconds:,.1f} ms"

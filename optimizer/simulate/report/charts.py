"""What a picture shows, as data that any renderer can draw: lines, stacked bars, spans of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from optimizer.simulate.budget import CurvePoint
from optimizer.simulate.measures import Measures, Seconds, tbt_s, ttft_s
from optimizer.simulate.record import PARTS, Record
from optimizer.simulate.scenario import Scenario

MAX_POINTS: Final = 200  # of a curve: more cannot be seen
TIMELINE_TOKENS: Final = 8  # how many tokens the timeline follows


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartLine:
    """One curve through its points; `marked` shows them."""

    name: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    marked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LineChart:
    """Curves over one axis. `limit` is a vertical line with its label."""

    name: str
    title: str
    x_label: str
    y_label: str
    lines: tuple[ChartLine, ...]
    log_x: bool = False
    limit: tuple[float, str] | None = None
    unit_interval: bool = False  # y is a share, 0 to 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BarChart:
    """Horizontal bars, each the sum of its parts. `values[bar][part]`, in milliseconds."""

    name: str
    title: str
    x_label: str
    bars: tuple[str, ...]
    parts: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanChart:
    """One row a part, a bar for each stretch of time; `marks` are moments (tokens), all in ms."""

    name: str
    title: str
    x_label: str
    rows: tuple[str, ...]
    spans: tuple[tuple[int, float, float], ...]
    marks: tuple[float, ...]


Chart: TypeAlias = LineChart | BarChart | SpanChart


def charts_of(
    scenario: Scenario,
    records: Sequence[Record],
    measures: Measures,
    curve: Sequence[CurvePoint] = (),
) -> tuple[Chart, ...]:
    """Every chart that these numbers allow."""
    budget = scenario.budget
    found: list[Chart] = []
    for name, title, values, limit_s in (
        ("ttft", "Time to the first token", ttft_s(records), budget.ttft_s),
        ("tbt", "Time between tokens", tbt_s(records), budget.tbt_s),
    ):
        if values.size:
            found.append(_distribution(name, title, values, limit_s))
    found.append(_breakdown(measures))
    if records[0].timeline:
        found.append(_timeline(records[0]))
    if len(curve) > 1:
        found.append(_capacity(curve, scenario))
    return tuple(found)


def _distribution(name: str, title: str, values: Seconds, limit_s: float | None) -> LineChart:
    """The share of values at or below x, on a logarithmic axis if they spread widely."""
    levels = np.linspace(0, 1, MAX_POINTS)
    xs = np.quantile(values, levels) * 1e3
    positive = xs[xs > 0]
    wide = bool(positive.size) and positive[-1] > 20 * positive[0]
    return LineChart(
        name=name,
        title=title,
        x_label="milliseconds",
        y_label="share of first tokens" if name == "ttft" else "share of further tokens",
        lines=(ChartLine(name=title, xs=tuple(map(float, xs)), ys=tuple(map(float, levels))),),
        log_x=wide and bool((xs > 0).mean() > 0.99),
        limit=None if limit_s is None else (limit_s * 1e3, "budget"),
        unit_interval=True,
    )


def _breakdown(measures: Measures) -> BarChart:
    return BarChart(
        name="breakdown",
        title="Where the time goes",
        x_label="milliseconds, mean",
        bars=("first token", "each step"),
        parts=PARTS,
        values=tuple(
            tuple(max(1e3 * parts[part], 0.0) for part in PARTS)
            for parts in (measures.breakdown_first_s, measures.breakdown_step_s)
        ),
    )


def _timeline(record: Record) -> SpanChart:
    rows = tuple(part for part in PARTS if part not in ("open", "recover"))
    marks = record.timeline_tokens_s[:TIMELINE_TOKENS]
    start_s = record.timeline[0].start_s
    return SpanChart(
        name="timeline",
        title=f"The first {len(marks)} tokens of one answer",
        x_label="milliseconds since the prompt was begun",
        rows=rows,
        spans=tuple(
            (rows.index(span.part), 1e3 * (span.start_s - start_s), 1e3 * (span.end_s - start_s))
            for span in record.timeline
            if span.end_s <= marks[-1]
        ),
        marks=tuple(1e3 * (at_s - start_s) for at_s in marks),
    )


def _capacity(curve: Sequence[CurvePoint], scenario: Scenario) -> LineChart:
    points = sorted(curve, key=lambda point: point.num_clients)
    clients = tuple(float(point.num_clients) for point in points)
    carried = [point.num_clients for point in points if point.kept]
    firsts = tuple(point.first_in_time for point in points)
    further = tuple(point.further_in_time for point in points)
    budget = scenario.budget
    lines = (
        ChartLine(name="first tokens", xs=clients, ys=firsts, marked=True),
        ChartLine(name="further tokens", xs=clients, ys=further, marked=True),
    )
    return LineChart(
        name="capacity",
        title="How many clients the servers carry",
        x_label="clients",
        y_label="share in time",
        lines=tuple(
            line
            for line, limit_s in zip(lines, (budget.ttft_s, budget.tbt_s), strict=True)
            if limit_s is not None
        ),
        log_x=clients[-1] > 20 * max(clients[0], 1.0),
        limit=(float(max(carried)), f"{max(carried):,} clients") if carried else None,
        unit_interval=True,
    )


def tick_label(value: float) -> str:
    """A number as short as it can be read."""
    if value and abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.6g}"

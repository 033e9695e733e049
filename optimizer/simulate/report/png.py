"""A chart as a PNG, through matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optimizer.errors import ScenarioError
from optimizer.simulate.report.charts import BarChart, Chart, LineChart, SpanChart


def write_png(chart: Chart, path: Path) -> None:
    """Draw `chart` into `path`. Raises ScenarioError when matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ScenarioError(
            "pictures need matplotlib (pip install 'splitpoint[simulate]')"
        ) from error
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(chart.title)
    axes.set_xlabel(chart.x_label)
    if isinstance(chart, LineChart):
        _lines(axes, chart)
    elif isinstance(chart, BarChart):
        _bars(axes, chart)
    else:
        _spans(axes, chart)
    figure.savefig(path, dpi=110)


def _lines(axes: Any, chart: LineChart) -> None:
    for line in chart.lines:
        axes.plot(line.xs, line.ys, marker="o" if line.marked else None, ms=4, label=line.name)
    if chart.limit is not None:
        axes.axvline(chart.limit[0], color="tab:red", ls="--", lw=1, label=chart.limit[1])
        axes.legend(fontsize=8)
    if chart.log_x:
        axes.set_xscale("log")
    if chart.unit_interval:
        axes.set_ylim(0, 1.02)
    axes.set_ylabel(chart.y_label)
    axes.grid(alpha=0.3, which="both")


def _bars(axes: Any, chart: BarChart) -> None:
    """Each bar in shares of its own total, which stands beside its name."""
    names = [f"{bar}\n{sum(row):.1f} ms" for bar, row in zip(chart.bars, chart.values, strict=True)]
    totals = [max(sum(row), 1e-12) for row in chart.values]
    left = [0.0] * len(chart.bars)
    for index, part in enumerate(chart.parts):
        shares = [row[index] / total for row, total in zip(chart.values, totals, strict=True)]
        if any(shares):
            axes.barh(names, shares, left=left, label=part)
            left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.set_xlabel("share of the mean")
    axes.invert_yaxis()
    axes.figure.legend(fontsize=8, ncols=4, loc="outside lower center")


def _spans(axes: Any, chart: SpanChart) -> None:
    for number, name in enumerate(chart.rows):
        own = [(begin, until - begin) for row, begin, until in chart.spans if row == number]
        axes.broken_barh(own, (number - 0.35, 0.7), color=f"C{number}", label=name)
    for mark in chart.marks:
        axes.axvline(mark, color="0.5", lw=0.6)
    axes.set_yticks(range(len(chart.rows)), chart.rows)
    axes.invert_yaxis()

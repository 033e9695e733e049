"""A chart as SVG. Colours are the page's CSS variables, so one picture serves light and dark.

Hand-written because matplotlib's SVG carries fixed colours and a font as outlines; what is
needed here is three kinds of picture at one width, that of a phone.
"""

from __future__ import annotations

import math
from html import escape

from optimizer.simulate.report.charts import (
    BarChart,
    Chart,
    LineChart,
    SpanChart,
    log_ticks,
    tick_label,
    ticks,
)

WIDTH, HEIGHT = 380, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 10, 40


class _Axis:
    """Values to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float, *, log: bool) -> None:
        self._log = log
        self.low, self.high = low, high if high > low else low + 1.0
        self._start, self._end = start, end

    def at(self, value: float) -> float:
        """The pixel of `value`."""
        low, high = self.low, self.high
        if self._log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        return self._start + (value - low) / (high - low) * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Round values on it."""
        return log_ticks(self.low, self.high) if self._log else ticks(self.low, self.high)


def svg(chart: Chart) -> str:
    """The chart as one `<svg>` element with a title for screen readers."""
    if isinstance(chart, LineChart):
        height, body = HEIGHT, _lines(chart)
    elif isinstance(chart, BarChart):
        height, body = _bars(chart)
    else:
        height, body = _spans(chart)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="{chart.name}-title">'
        f'<title id="{chart.name}-title">{escape(chart.title)}</title>{body}</svg>'
    )


def _lines(chart: LineChart) -> str:
    xs = [x for line in chart.lines for x in line.xs]
    ys = [y for line in chart.lines for y in line.ys]
    if chart.limit is not None:
        xs.append(chart.limit[0])
    low_x = min(x for x in xs if x > 0) if chart.log_x else min(0.0, *xs)
    x_axis = _Axis(low_x, max(xs), LEFT, WIDTH - RIGHT, log=chart.log_x)
    high_y = 1.0 if chart.unit_interval else max(ys)
    y_axis = _Axis(0.0, high_y, HEIGHT - BOTTOM, TOP, log=False)
    parts = [_grid(x_axis, y_axis, HEIGHT), _labels(chart.x_label, chart.y_label, HEIGHT)]
    if chart.limit is not None:
        value, label = chart.limit
        x = x_axis.at(value)
        anchor = "end" if x > WIDTH * 0.6 else "start"
        shift = -4 if anchor == "end" else 4
        parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" '
                     f'y2="{HEIGHT - BOTTOM}"/>')  # fmt: skip
        parts.append(_text(x + shift, HEIGHT - BOTTOM - 6, label, anchor, "limit-label"))
    for number, line in enumerate(chart.lines):
        points = [(x_axis.at(x), y_axis.at(y)) for x, y in zip(line.xs, line.ys, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="line c{number}" points="{path}"/>')
        if line.marked:
            parts += [
                f'<circle class="dot c{number}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
                for x, y in points
            ]
    return "".join(parts)


def _bars(chart: BarChart) -> tuple[int, str]:
    thick, gap, top = 34, 26, 8
    shown = [
        index for index, _ in enumerate(chart.parts) if any(row[index] > 0 for row in chart.values)
    ]
    per_row = 4
    legend_rows = -(-len(shown) // per_row)
    bottom = top + len(chart.bars) * (thick + gap)
    height = bottom + 34 + 18 * legend_rows
    parts = []
    for number, (bar, row) in enumerate(zip(chart.bars, chart.values, strict=True)):
        total = sum(row)
        y = top + number * (thick + gap)
        parts.append(_text(0, y + 12, f"{bar}: {tick_label(round(total, 1))} ms", "start", ""))
        # Each bar fills the width: the two differ by orders, and the shares are what is read.
        x, scale = 0.0, WIDTH / max(total, 1e-12)
        for index in shown:
            wide = row[index] * scale
            label = (
                f"{chart.parts[index]}: {row[index]:.2f} ms ({row[index] / max(total, 1e-12):.0%})"
            )
            parts.append(
                f'<rect class="p{index}" x="{x:.1f}" y="{y + 18}" width="{wide:.1f}" '
                f'height="{thick - 6}"><title>{escape(label)}</title></rect>'
            )
            if wide > 40:
                share = f"{row[index] / total:.0%}"
                parts.append(_text(x + wide / 2, y + 36, share, "middle", "on-bar"))
            x += wide
    for place, index in enumerate(shown):
        x = (place % per_row) * WIDTH / per_row
        y = bottom + 22 + 18 * (place // per_row)
        parts.append(f'<rect class="p{index}" x="{x:.1f}" y="{y - 10}" width="11" height="11"/>')
        parts.append(_text(x + 16, y, chart.parts[index], "start", ""))
    return height, "".join(parts)


def _spans(chart: SpanChart) -> tuple[int, str]:
    row_height, left = 24, 56
    bottom = TOP + row_height * len(chart.rows)
    height = bottom + BOTTOM
    end = max([*(span[2] for span in chart.spans), *chart.marks])
    axis = _Axis(0.0, end, left, WIDTH - RIGHT, log=False)
    parts = []
    for value in axis.ticks():
        x = axis.at(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 15, tick_label(value), "middle", ""))
    parts.append(_text((left + WIDTH) / 2, height - 6, chart.x_label, "middle", ""))
    for number, row in enumerate(chart.rows):
        parts.append(_text(left - 6, TOP + row_height * number + 16, row, "end", ""))
    colours = {"edge": 1, "encode": 2, "up": 3, "queue": 4, "cloud": 5, "down": 6}
    for number, begin, until in chart.spans:
        x, y = axis.at(begin), TOP + row_height * number + 4
        wide = max(axis.at(until) - x, 0.6)
        name = chart.rows[number]
        parts.append(
            f'<rect class="p{colours[name]}" x="{x:.1f}" y="{y}" width="{wide:.1f}" '
            f'height="{row_height - 8}"><title>{name}: {until - begin:.2f} ms</title></rect>'
        )
    parts += [
        f'<line class="mark" x1="{axis.at(mark):.1f}" x2="{axis.at(mark):.1f}" y1="{TOP}" '
        f'y2="{bottom}"/>'
        for mark in chart.marks
    ]
    return height, "".join(parts)


def _grid(x_axis: _Axis, y_axis: _Axis, height: int) -> str:
    parts = []
    for value in x_axis.ticks():
        x = x_axis.at(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" '
                     f'y2="{height - BOTTOM}"/>')  # fmt: skip
        parts.append(_text(x, height - BOTTOM + 15, tick_label(value), "middle", ""))
    for value in y_axis.ticks():
        y = y_axis.at(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" '
                     f'y2="{y:.1f}"/>')  # fmt: skip
        parts.append(_text(LEFT - 5, y + 4, tick_label(value), "end", ""))
    return "".join(parts)


def _labels(x_label: str, y_label: str, height: int) -> str:
    middle = (TOP + height - BOTTOM) / 2
    return _text((LEFT + WIDTH - RIGHT) / 2, height - 6, x_label, "middle", "") + (
        f'<text transform="translate(11,{middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(text)}</text>'

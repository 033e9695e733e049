"""A chart drawn by matplotlib: as a PNG file, or as SVG in the page's light or dark colours.

matplotlib writes fixed colours. For the page it draws with placeholder colours, and each of them
becomes a CSS variable of the page, so that one picture serves light and dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any, Final, TypeAlias

from optimizer.errors import ScenarioError
from optimizer.simulate.report.charts import BarChart, Chart, LineChart, SpanChart, tick_label

# The colours of charts by name: `p0` to `p7` are those of `record.PARTS`.
LIGHT: Final[Mapping[str, str]] = {
    "ink": "#1c1c1e", "soft": "#6b6b70", "rule": "#dcdcda", "card": "#ffffff",
    "c0": "#1f6fb2", "c1": "#b35c00", "limit": "#b3261e", "on-bar": "#ffffff",
    "p0": "#8a8a8f", "p1": "#1f6fb2", "p2": "#57a0d3", "p3": "#c77700",
    "p4": "#b3261e", "p5": "#2e7d4f", "p6": "#e0a030", "p7": "#7b4fa3",
}  # fmt: skip
DARK: Final[Mapping[str, str]] = {
    "ink": "#ececee", "soft": "#a0a0a8", "rule": "#3a3a40", "card": "#1d1d20",
    "c0": "#6cb4ee", "c1": "#f0a860", "limit": "#ff8a80", "on-bar": "#101012",
    "p0": "#77777d", "p1": "#4a9be0", "p2": "#8cc6f0", "p3": "#e0953a",
    "p4": "#f2726b", "p5": "#57b37f", "p6": "#f0c060", "p7": "#b08ad8",
}  # fmt: skip
_PLACEHOLDERS: Final[Mapping[str, str]] = {
    name: f"#0101{index:02x}" for index, name in enumerate(LIGHT)
}

WIDTH, HEIGHT = 380, 250  # of a picture on the page, in CSS pixels: the width of a phone
UNITS_PER_INCH: Final = 72  # matplotlib's SVG counts in points
PNG_DPI: Final = 140
LABEL_POINTS: Final = 18  # above the axes, for the label of a limit below the title
FEW_DECADES: Final = 500
FEWEST_TO_LABEL: Final = 0.1  # a smaller share of a bar has no room for its number

Colours: TypeAlias = Mapping[str, str]
# Makes an artist's label appear when the mouse is over it.
Explain: TypeAlias = Callable[[Any, str], None]


def write_png(chart: Chart, path: Path) -> None:
    """Draw `chart` into `path`. Raises ScenarioError when matplotlib is not installed."""
    with _matplotlib(chart):
        figure = draw_figure(chart, LIGHT, lambda artist, label: None)
        has_label = isinstance(chart, LineChart) and chart.limit is not None
        pad = LABEL_POINTS if has_label else None
        figure.axes[0].set_title(chart.title, color=LIGHT["ink"], pad=pad)
        figure.savefig(path, dpi=PNG_DPI, facecolor=LIGHT["card"])


def svg(chart: Chart) -> str:
    """The chart as one `<svg>` element for the page, with a title for screen readers.

    Its colours are CSS variables named as in LIGHT. Raises ScenarioError when matplotlib is not
    installed.
    """
    labels: dict[str, str] = {}

    def explain(artist: Any, label: str) -> None:
        key = f"label{len(labels)}"
        labels[key] = label
        artist.set_gid(key)

    with _matplotlib(chart), io.StringIO() as file:
        figure = draw_figure(chart, _PLACEHOLDERS, explain)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        text = file.getvalue()
    return _for_page(text, chart, labels)


def _matplotlib(chart: Chart) -> Any:
    """matplotlib's settings for one picture: text stays text, and equal charts give equal bytes."""
    try:
        import matplotlib
    except ImportError as error:
        raise ScenarioError(
            "pictures need matplotlib (pip install 'splitpoint[simulate]')"
        ) from error
    return matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": chart.name, "font.size": 11}
    )


def _for_page(text: str, chart: Chart, labels: Mapping[str, str]) -> str:
    """matplotlib's SVG file as an element of an HTML page that has several of them."""
    # Without the head, whose <style> would hold for the whole page.
    body = text[text.index("</defs>") + len("</defs>") : text.rindex("</svg>")]
    for key, label in labels.items():
        body = body.replace(f'<g id="{key}">', f"<g><title>{escape(label)}</title>")
    body = body.replace("xlink:href", "href")
    used = set(re.findall(r'(?:href="#|url\(#)([\w.-]+)', body))
    body = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in used else "", body)
    names = list(LIGHT)
    body = re.sub(r"#0101([0-9a-f]{2})", lambda found: f"var(--{names[int(found[1], 16)]})", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)  # the page's own
    body = re.sub(r"\s*\n\s*", " ", body)
    box = re.search(r'viewBox="[^"]*"', text)
    return (
        f'<svg {box[0] if box else ""} role="img" aria-labelledby="{chart.name}-title">'
        f'<title id="{chart.name}-title">{escape(chart.title)}</title>{body}</svg>'
    )


def draw_figure(chart: Chart, colours: Colours, explain: Explain) -> Any:
    """The chart as a matplotlib figure, in `colours` by their names in LIGHT."""
    from matplotlib.figure import Figure

    size = (WIDTH / UNITS_PER_INCH, HEIGHT / UNITS_PER_INCH)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    if isinstance(chart, LineChart):
        _lines(axes, chart, colours)
    elif isinstance(chart, BarChart):
        _bars(axes, chart, colours, explain)
    else:
        _spans(axes, chart, colours, explain)
    for side, spine in axes.spines.items():
        spine.set_color(colours["rule"])
        spine.set_visible(side in ("left", "bottom"))
    axes.tick_params(which="both", color=colours["rule"], labelcolor=colours["ink"])
    axes.xaxis.label.set_color(colours["ink"])
    axes.yaxis.label.set_color(colours["ink"])
    axes.set_axisbelow(True)
    return figure


def _lines(axes: Any, chart: LineChart, colours: Colours) -> None:
    looks = (("c0", "-", "o"), ("c1", "--", "s"))
    for line, (colour, style, marker) in zip(chart.lines, looks, strict=False):
        axes.plot(
            line.xs, line.ys, style, color=colours[colour], lw=2, label=line.name,
            marker=marker if line.marked else None, ms=5,
        )  # fmt: skip
    if len(chart.lines) > 1:
        _legend_below(axes, colours)
    if chart.log_x:
        _log_axis(axes)
    if chart.unit_interval:
        axes.set_ylim(0, 1.02)
    if chart.limit is not None:
        at, label = chart.limit
        axes.axvline(at, color=colours["limit"], ls="--", lw=1)
        # Above the axes, where no curve goes.
        axes.annotate(
            label, (at, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 2),
            textcoords="offset points", ha="center", va="bottom", color=colours["limit"],
            annotation_clip=False,
        )  # fmt: skip
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.grid(color=colours["rule"], lw=0.8)


def _log_axis(axes: Any) -> None:
    """A logarithmic x axis with plain numbers, at 2 and 5 too if it spans few decades."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    steps = (1, 2, 5) if high / low < FEW_DECADES else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(lambda value, _: tick_label(value))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _bars(axes: Any, chart: BarChart, colours: Colours, explain: Explain) -> None:
    """Each bar in shares of its own total, which stands beside its name.

    The totals differ by orders of magnitude, and the shares are what is read.
    """
    names = [f"{bar}\n{sum(row):.1f} ms" for bar, row in zip(chart.bars, chart.values, strict=True)]
    totals = [max(sum(row), 1e-12) for row in chart.values]
    left = [0.0] * len(chart.bars)
    for index, part in enumerate(chart.parts):
        shares = [row[index] / total for row, total in zip(chart.values, totals, strict=True)]
        if not any(shares):
            continue
        bars = axes.barh(names, shares, left=left, color=colours[f"p{index}"], label=part)
        for bar, row, share, start in zip(bars, chart.values, shares, left, strict=True):
            explain(bar, f"{part}: {row[index]:.2f} ms ({share:.0%})")
            if share > FEWEST_TO_LABEL:
                middle = (start + share / 2, bar.get_y() + bar.get_height() / 2)
                axes.text(
                    *middle, f"{share:.0%}", ha="center", va="center", color=colours["on-bar"]
                )
        left = [start + share for start, share in zip(left, shares, strict=True)]
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the mean")
    axes.invert_yaxis()
    _legend_below(axes, colours)


def _legend_below(axes: Any, colours: Colours) -> None:
    """Outside of the axes, where it covers nothing."""
    axes.figure.legend(
        fontsize=10, ncols=4, loc="outside lower center", frameon=False, labelcolor=colours["ink"]
    )


def _spans(axes: Any, chart: SpanChart, colours: Colours, explain: Explain) -> None:
    for number, begin, until in chart.spans:
        name = chart.rows[number]
        [bar] = axes.barh(
            number, until - begin, left=begin, height=0.7, color=colours[f"p{number + 1}"]
        )
        explain(bar, f"{name}: {until - begin:.2f} ms")
    for mark in chart.marks:
        axes.axvline(mark, color=colours["soft"], lw=0.8, ls=":")
    axes.set_xlabel(chart.x_label)
    axes.set_yticks(range(len(chart.rows)), chart.rows)
    axes.invert_yaxis()
    axes.grid(axis="x", color=colours["rule"], lw=0.8)

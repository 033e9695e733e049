"""Tables of the HTML page, and how numbers are written in them.

On a phone a table of many columns becomes one block a row: nothing is cut or scrolls sideways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

FEW_COLUMNS: Final = 4  # so many fit on a phone
MAX_DIGITS: Final = 6  # of a share in percent

TABLE_STYLE: Final = """
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  margin-bottom: 1rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--rule); text-align: right; }
th:first-child, td:first-child { text-align: left; }
td:first-child { overflow-wrap: anywhere; }
td:not(:first-child) { white-space: nowrap; }
table.pairs td { white-space: normal; }
dl.subject { display: grid; grid-template-columns: max-content 1fr; gap: .2rem .9rem;
  margin: .8rem 0; }
dl.subject dt { color: var(--soft); } dl.subject dd { margin: 0; overflow-wrap: anywhere; }
.kept { color: var(--p5); } .broken { color: var(--limit); }
@media (max-width: 34rem) {
  th, td { padding: .25rem .3rem; }
  table.wide thead { display: none; }
  table.wide tr { display: flex; flex-wrap: wrap; gap: 0 1rem; padding: .3rem 0;
    border-bottom: 1px solid var(--rule); }
  table.wide td { border: 0; padding: 0; }
  table.wide td:first-child { flex-basis: 100%; font-weight: 600; }
  table.wide td:not(:first-child)::before { content: attr(data-name) " "; color: var(--soft); }
}
"""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already. A head without words is left out."""
    wide = len(head) > FEW_COLUMNS
    look = ' class="wide"' if wide else ' class="pairs"' if not any(head) else ""
    names = "".join(f'<th scope="col">{name}</th>' for name in head)
    header = f"<thead><tr>{names}</tr></thead>" if any(head) else ""
    body = "".join(
        "<tr>"
        + "".join(
            f'<td data-name="{escape(name)}">{cell}</td>' if wide else f"<td>{cell}</td>"
            for name, cell in zip(head, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table{look}>{header}<tbody>{body}</tbody></table>"


def facts(values: Mapping[str, str]) -> str:
    """Names and texts as a list; both are escaped here."""
    return (
        '<dl class="subject">'
        + "".join(
            f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in values.items()
        )
        + "</dl>"
    )


def verdict(kept: bool) -> str:
    """One word in its colour."""
    return '<span class="kept">kept</span>' if kept else '<span class="broken">broken</span>'


def share(value: float) -> str:
    """A share in percent."""
    return f"{value:.1%}"


def share_of_wanted(value: float, wanted: float) -> str:
    """A share in percent, with as many digits as tell one that falls short from the wanted one."""
    for digits in range(1, MAX_DIGITS):
        text = f"{value:.{digits}%}"
        if value >= wanted or float(text[:-1]) < 100 * wanted:
            return text
    return f"{value:.{MAX_DIGITS}%}"


def limit(seconds: float) -> str:
    """A limit as it was given: `1.5 s`, `150 ms`."""
    return f"{seconds:g} s" if seconds >= 1 else f"{1e3 * seconds:g} ms"


def time(seconds: float) -> str:
    """A duration in three figures or four: `1.50 s`, `69.5 ms`, `0.22 ms`, `0`."""
    if seconds >= 100:
        return f"{seconds:,.0f} s"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    if seconds >= 1e-2:
        return f"{1e3 * seconds:.1f} ms"
    return f"{1e3 * seconds:.2f} ms" if seconds >= 5e-6 else "0"

"""Predictions beside measurements, and refined factors, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table

from optimizer.measured.comparison import HELD, NEAR, ComparedFigure
from optimizer.measured.refine import Refinement
from splitpoint.views.plan_view import output_width
from splitpoint.views.promise_view import Text, joules_text, per_second_text
from splitpoint.views.screen import open_console
from splitpoint.views.sizes import size_text, time_text

if TYPE_CHECKING:
    from splitpoint.explaining import CheckedDeployment, ComparedAnswer


UNIT_TEXT: Final[Mapping[str, Text]] = {
    "s": time_text,
    "J": joules_text,
    "tokens/s": per_second_text,
    "money": lambda value: f"{value:.3g}",
}


def compared_json(figures: Sequence[ComparedFigure]) -> list[dict[str, Any]]:
    """The rows of the table as objects."""
    return [{**asdict(row), "verdict": row.verdict} for row in figures]


def explained_json(found: ComparedAnswer | None) -> dict[str, Any]:
    """What `run --explain --json` adds. `energy_note`: why energy is not among it."""
    note = {"energy_note": found.note} if found is not None and found.note else {}
    return {"predicted": compared_json([] if found is None else found.figures), **note}


def print_compared(console: Console, figures: Sequence[ComparedFigure], *, title: str) -> None:
    """One row a figure: of one measurement its value, of several three quantiles.

    "inside" is the share of answers measured within the prediction's p5 and p95; of one answer,
    whether it was."""
    is_one = all(row.count == 1 for row in figures)
    columns = ["measured"] if is_one else ["answers", "p10", "p50", "p90"]
    verdict = [] if is_one else [f"within {HELD:.0%}"]
    table = Table("figure", "predicted", "p10 to p90", *columns, "error", *verdict, "inside", "")
    table.title, table.title_justify = title, "left"
    for row in figures:
        values = [row.p50] if is_one else [row.p10, row.p50, row.p90]
        shown = [_text(value, row.unit) for value in values]
        table.add_row(
            row.figure,
            _text(row.predicted, row.unit),
            _range_text(row),
            *(shown if is_one else [str(row.count), *shown]),
            f"{row.error:+.0%}",
            *([] if is_one else [f"{row.held_share:.0%}"]),
            _inside_text(row, is_one=is_one),
            row.verdict,
        )
    console.print(table)


def _range_text(row: ComparedFigure) -> str:
    """Between what eight of ten answers should be; empty where nobody knows."""
    if row.predicted_p10 is None or row.predicted_p90 is None:
        return ""
    return f"{_text(row.predicted_p10, row.unit)} to {_text(row.predicted_p90, row.unit)}"


def _inside_text(row: ComparedFigure, *, is_one: bool) -> str:
    if row.covered_share is None:
        return ""
    if is_one:
        return "yes" if row.covered_share else "no"
    return f"{row.covered_share:.0%}"


def checked_json(found: Sequence[CheckedDeployment]) -> list[dict[str, Any]]:
    """Every configuration of a log as an object."""
    return [
        {
            "model": item.plan.model.id,
            "split": item.plan.partition.split,
            "front_bits": item.plan.partition.front_bits,
            "back_bits": item.plan.partition.back_bits,
            "kv_bits": item.plan.kv_bits,
            "level": item.plan.level,
            "machine": asdict(item.machine),
            "answers": item.num_answers,
            "figures": compared_json(item.figures),
            **({"energy_note": item.note} if item.note else {}),
        }
        for item in found
    ]


def print_checked(found: Sequence[CheckedDeployment]) -> None:
    """A table a configuration, and a line under it."""
    console = open_console(width=output_width())
    for item in found:
        partition = item.plan.partition
        title = (
            f"{item.plan.model.id}, split {partition.split}, front {partition.front_bits} bits, "
            f"KV {item.plan.kv_bits}, back {partition.back_bits}, on {item.machine.processor} "
            f"({item.machine.engine}, {item.machine.num_threads} threads)"
        )
        print_compared(console, item.figures, title=title)
        console.print(compared_line(item.figures, item.note), highlight=False)


def compared_line(figures: Sequence[ComparedFigure], note: str = "") -> str:
    """One line: how many predictions held, and why energy is not among them."""
    counts = {name: sum(row.verdict == name for row in figures) for name in ("held", "nearly")}
    return (
        f"{counts['held']} of {len(figures)} predictions held (within {HELD:.0%}), "
        f"{counts['nearly']} nearly (within {NEAR:.0%}){f'; {note}' if note else ''}"
    )


def refinement_json(found: Refinement) -> dict[str, Any]:
    """What was corrected, as an object."""
    return {
        "name": found.profile.name,
        "used": found.num_used,
        "left_out": dict(found.left_out),
        "factors": [asdict(item) for item in found.factors],
        "link": None if found.link is None else found.link._asdict(),
    }


def print_refinement(console: Console, found: Refinement) -> None:
    """One row a kind of work, then what was left out and what the link did."""
    table = Table("kind of work", "observations", "takes", "spread", title_justify="left")
    table.title = f"{found.profile.name}: what it takes over what the profile said"
    for item in found.factors:
        ratio = "left alone: too few" if item.ratio is None else f"x {item.ratio:.3f}"
        spread = "" if item.spread is None else f"{item.spread:.0%}"
        table.add_row(item.factor, str(item.observations), ratio, spread)
    console.print(table)
    for reason, count in found.left_out.items():
        console.print(f"{count} records left out: {reason}", highlight=False)
    if found.link is not None:
        rate = found.link.up_bytes_per_s
        up = "" if rate is None else f", up {8e-6 * rate:.3g} Mbit/s"
        console.print(
            f"the link meanwhile: round trip {time_text(found.link.rtt_s)} with both network "
            f"stacks{up}; it is no part of a device profile",
            highlight=False,
        )


def _text(value: float, unit: str) -> str:
    if unit in UNIT_TEXT:
        return UNIT_TEXT[unit](value)
    return size_text(value) if value >= 1 << 20 else f"{value:,.0f} B"

"""The page of results of `grid.py`: every figure of every cell, medians over the repeats."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.planning.grid_cells import CELLS
from benchmarks.planning.grid_predict import TwoMachines, figures_of
from benchmarks.planning.wrong_profile import refined_lines

COVERED: Final = 0.9  # share of measurements that should lie within p5 and p95
MIB: Final = 1 << 20
GROUPS: Final = {
    "plan": "Deployments",
    "front": "Fronts alone",
    "server": "A server process",
    "large": "Bigger models",
}
MEMORY: Final = "memory"
# The whole small model in the precision of the bigger ones.
SMALL_FRONT: Final = "split 30, 4 bits, KV 8"
# What is scaled, the word in its figures' names, and the small model's: group, cell and word.
SCALED: Final = (
    ("decode", "decode", ("front", SMALL_FRONT, "decode")),
    ("prompt", "rows", ("front", SMALL_FRONT, "rows")),
    ("server, 1 session", "step, 1 ", ("server", "1 sessions", "step")),
    ("server, 8 sessions", "step, 8 ", ("server", "8 sessions", "step")),
)


def rows_of(
    results: dict[str, Any], machines_of: Callable[[int], TwoMachines], folder: Path
) -> list[dict[str, Any]]:
    """One row a figure: medians over the repeats of what was predicted and measured."""
    pairs: dict[tuple[str, str, str], list[tuple[Any, bool]]] = {}
    for number, repeat in enumerate(results["repeats"]):
        if not repeat["cells"]:
            continue
        machines = machines_of(number)
        for cell in CELLS:
            measured = repeat["cells"].get(cell.key)
            if measured is None:
                continue
            for figure in figures_of(cell, measured, machines, folder):
                key = (cell.group, cell.key, figure.figure)
                pairs.setdefault(key, []).append((figure, measured["busy"]))
    return [_row(*key, found) for key, found in pairs.items()]


def _row(group: str, cell: str, name: str, found: Sequence[tuple[Any, bool]]) -> dict[str, Any]:
    middle = statistics.median
    figures = [figure for figure, _ in found]
    return {
        "group": group,
        "cell": cell.removeprefix(f"{group}: "),
        "figure": name,
        "p10": middle(figure.predicted.p10 for figure in figures),
        "p50": middle(figure.predicted.p50 for figure in figures),
        "p90": middle(figure.predicted.p90 for figure in figures),
        "measured": middle(figure.measured for figure in figures),
        "error": middle(figure.error for figure in figures),
        "errors": [figure.error for figure in figures],
        "covered": [figure.predicted.covers(figure.measured, share=COVERED) for figure in figures],
        "repeats": len(figures),
        "busy": sum(busy for _, busy in found),
    }


def page(
    results: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    refined: dict[str, Any] | None = None,
) -> str:
    """The page as Markdown. refined: of `refined_rows`."""
    machine = results["machine"]
    lines = [
        "# Results: predictions over a grid",
        "",
        "    python -m benchmarks.planning.grid --folder build/grid --repeats 3 --write PAGE",
        "",
        "What two profiles predict beside what was measured. p10, p50 and p90 are quantiles of the",
        "prediction. Errors are predicted over measured, less one, median of the repeats. A row is",
        "*outside* where a repeat was not within p5 and p95, and *busy* where other programs used",
        "more than 0.3 cores meanwhile, or the host slowed this machine down by more than 10 %.",
        "",
    ]
    if machine:
        cores = "one core for each side" if machine["pinned"] else "one core for both sides"
        lines += [
            f"**Machine:** {machine['processor']}, {machine['cpus']} cores, {cores}"
            f"{', real-time priority' if machine['real_time'] else ''}; {machine['date']}.",
            f"{'Quick profiles' if machine.get('quick') else 'Profiles'}, measured anew in each of "
            f"{len(results['repeats'])} repeats, of {_cells_text(results)} cells.",
            "",
        ]
    if not rows:
        return "\n".join([*lines, "Nothing was measured yet.", ""])
    lines += [
        "| figures | count | median error | worst error | within p5 to p95 | beside other work |"
    ]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    for title, chosen in _summaries(rows):
        if chosen:
            lines.append(_summary_line(title, chosen))
    for group, title in GROUPS.items():
        chosen = [row for row in rows if row["group"] == group]
        if chosen:
            lines += ["", f"## {title}", ""]
            lines += ["| cell | figure | p10 | p50 | p90 | measured | error | |"]
            lines += ["| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |"]
            lines += [_line(row) for row in chosen]
    lines += _scaling_lines(rows)
    lines += refined_lines(refined)
    refused = [
        (key, cell["refused"])
        for repeat in results["repeats"]
        for key, cell in repeat["cells"].items()
        if "refused" in cell
    ]
    if refused:
        lines += ["", "## Refused", "", "| cell | why |", "| --- | --- |"]
        lines += [f"| {key} | {why} |" for key, why in refused]
    return "\n".join([*lines, ""])


def _cells_text(results: dict[str, Any]) -> str:
    """How many cells each repeat has, in words."""
    counts = [str(len(repeat["cells"])) for repeat in results["repeats"]]
    return counts[0] if len(set(counts)) == 1 else " and ".join(counts)


def _scaling_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the same profile is off by for a bigger model beyond what it is for the small one."""
    found = scaling_errors(rows)
    if not found:
        return []
    lines = ["", "## From the small model to bigger ones, without a new profile", ""]
    lines += [
        f"The small model is the front of `{SMALL_FRONT}` above, or its server process. The",
        "scaling error is what is left of a bigger model's error when the small one's is taken",
        "off: (1 + big) / (1 + small) - 1.",
        "",
        "| model | figures | small | big | scaling error |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {item['cell']} | {item['kind']} | {item['small']:+.1%} | {item['large']:+.1%} | "
        f"{item['scaling']:+.1%} |"
        for item in found
    ]
    return lines


def scaling_errors(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each bigger model's decode and prompt: its error (median over positions), the small
    model's, and what scaling adds. Empty where one of them was not measured."""

    def middle(group: str, cell: str, word: str) -> float | None:
        errors = [
            row["error"]
            for row in rows
            if (row["group"], row["cell"]) == (group, cell) and word in row["figure"]
        ]
        return statistics.median(errors) if errors else None

    found = []
    for cell in dict.fromkeys(row["cell"] for row in rows if row["group"] == "large"):
        for kind, word, (group, small_cell, small_word) in SCALED:
            small, large = middle(group, small_cell, small_word), middle("large", cell, word)
            if small is not None and large is not None:
                scaling = (1 + large) / (1 + small) - 1
                found.append(
                    {"cell": cell, "kind": kind, "small": small, "large": large, "scaling": scaling}
                )
    return found


def _summaries(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """What the page's first table sums up."""

    def some(group: str, figure: str) -> list[dict[str, Any]]:
        return [row for row in rows if row["group"] == group and row["figure"].startswith(figure)]

    return [
        ("TTFT of deployments", some("plan", "TTFT")),
        ("TBT of deployments", some("plan", "TBT")),
        ("memory of deployments", some("plan", MEMORY)),
        ("decode of fronts", some("front", "decode")),
        ("steps of a server", some("server", "")),
        ("decode of bigger models", some("large", "decode")),
        ("memory of bigger models", some("large", MEMORY)),
        ("server's steps of bigger models", some("large", "server")),
        ("all times", [row for row in rows if not row["figure"].startswith(MEMORY)]),
    ]


def _summary_line(title: str, rows: Sequence[dict[str, Any]]) -> str:
    errors = [row["error"] for row in rows]
    middle = statistics.median(map(abs, errors))
    worst = max(errors, key=abs)
    covered = [inside for row in rows for inside in row["covered"]]
    busy = sum(row["busy"] for row in rows)
    return (
        f"| {title} | {len(rows)} | {middle:.1%} | {worst:+.1%} | "
        f"{sum(covered) / len(covered):.0%} | {busy} of {len(covered)} |"
    )


def _line(row: dict[str, Any]) -> str:
    is_memory = row["figure"].startswith(MEMORY)
    values = [row[name] for name in ("p10", "p50", "p90", "measured")]
    shown = [f"{v / MIB:.1f} MiB" if is_memory else f"{1e3 * v:.4g} ms" for v in values]
    notes = [] if all(row["covered"]) else ["outside"]
    notes += ["busy"] if row["busy"] else []
    return (
        f"| {row['cell']} | {row['figure']} | {' | '.join(shown)} | {row['error']:+.1%} | "
        f"{', '.join(notes)} |"
    )


def write_page(path: Path, text: str) -> None:
    """Write the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def say(text: str) -> None:
    """A line of progress, on stderr."""
    print(text, file=sys.stderr, flush=True)

"""Profiles that are wrong by a factor, and what refining with the grid's own log makes of them.

`grid.py` keeps the measurement logs of both sides (`--measure`) beside its results. All rates of
two profiles are made wrong by `WRONG`, `refine_profile` corrects them with the logs, and both
predict the grid's deployments and server steps. Where there are several repeats, the last one's
cells are asked and the logs of the others are learned from.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks.planning.grid_predict import TwoMachines
from hwprofiles.profiles.catalog import to_plain
from hwprofiles.profiles.device import DeviceProfile
from hwprofiles.schema.strict_yaml import build_strict
from optimizer.errors import MeasurementError
from optimizer.measured.log import read_measurements
from optimizer.measured.record import Measured
from optimizer.measured.refine import refine_profile

WRONG: Final = 1.5
ASKED: Final = ("TTFT", "TBT", "server's step")  # figures of what the log is of
RowsOf = Callable[[dict[str, Any], Callable[[int], TwoMachines]], list[dict[str, Any]]]


def times_faster(profile: DeviceProfile, factor: float) -> DeviceProfile:
    """The same machine with every rate wrong by `factor`, and its empty process too: written
    without the code that refining uses."""
    plain = _faster(to_plain(profile), factor)
    base = plain["memory"]["runtime_base_bytes"]
    base["value"] = base["value"] / factor
    wrong: DeviceProfile = build_strict(plain, DeviceProfile, source="wrong")
    return wrong


def _faster(value: Any, factor: float, name: str = "") -> Any:
    if isinstance(value, dict):
        is_figure = "value" in value
        return {
            key: _faster(part, factor, name if is_figure and key == "value" else key)
            for key, part in value.items()
        }
    if isinstance(value, list):
        return [_faster(part, factor) for part in value]
    if not isinstance(value, float):
        return value
    if name.endswith("per_s"):
        return value * factor
    if name.endswith("_s") or name == "seconds" or "_s_per_" in name:
        return value / factor
    return value


def log_of(folder: Path, repeat: int) -> Path:
    """Where the measurements of a repeat's programs are kept."""
    return folder / f"measured-{repeat}.jsonl"


def refined_rows(
    results: dict[str, Any],
    machines_of: Callable[[int], TwoMachines],
    folder: Path,
    rows_of: RowsOf,
) -> dict[str, Any] | None:
    """Rows of the last repeat's figures under the wrong profiles and under the refined ones.

    None where no log was kept, or too little is in it. `minutes`: that the learned repeats' cells
    took in all; `records`: lines of their logs.
    """
    repeats = results["repeats"]
    last = len(repeats) - 1
    learned = [n for n in range(max(last, 1)) if log_of(folder, n).is_file()]
    records = [line for n in learned for line in read_measurements(log_of(folder, n))]
    if not records:
        return None
    first = machines_of(learned[0])
    wrong = replace(
        first, edge=times_faster(first.edge, WRONG), cloud=times_faster(first.cloud, WRONG)
    )
    try:
        edge, cloud = (_refined(one, records) for one in (wrong.edge, wrong.cloud))
    except MeasurementError:  # of a few cells alone: too little was observed
        return None
    found = replace(first, edge=edge, cloud=cloud)
    asked = {**results, "repeats": [{"cells": {}}] * last + [repeats[last]]}

    def rows(machines: TwoMachines) -> list[dict[str, Any]]:
        return [
            row
            for row in rows_of(asked, lambda number: machines)
            if row["group"] in ("plan", "server") and row["figure"] in ASKED
        ]

    seconds = [cell["took_s"] for n in learned for cell in repeats[n]["cells"].values()]
    return {
        "minutes": sum(seconds) / 60,
        "records": len(records),
        "asked": "that were measured afterwards" if last else "of the same pass",
        "wrong": rows(wrong),
        "refined": rows(found),
    }


def _refined(profile: DeviceProfile, records: Sequence[Measured]) -> DeviceProfile:
    found = refine_profile(profile, records, name=profile.name, command="the grid's log")
    return found.profile


def refined_lines(found: dict[str, Any] | None) -> list[str]:
    """The page's section."""
    if found is None:
        return []
    lines = ["", f"## A profile that is wrong by {WRONG}, refined", ""]
    lines += [
        f"Every rate of both profiles is {WRONG} times too fast. `profile refine` corrects them",
        f"with {found['records']} lines that the programs of {found['minutes']:.0f} minutes wrote",
        f"(`--measure`). Errors are of cells {found['asked']}.",
        "",
        "| figures | count | wrong: median | wrong: worst | refined: median | refined: worst |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in ASKED:
        parts = []
        for kind in ("wrong", "refined"):
            errors = [row["error"] for row in found[kind] if row["figure"] == name]
            if not errors:
                break
            middle = statistics.median(map(abs, errors))
            parts += [f"{middle:.1%}", f"{max(errors, key=abs):+.1%}"]
        else:
            lines.append(f"| {name} | {len(errors)} | {' | '.join(parts)} |")
    return lines

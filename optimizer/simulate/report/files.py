"""Everything a simulation found, written into a folder.

report.html    the page            measures.json   what --json prints
requests.csv   one row a request   tbt.csv         quantiles of the time between tokens
sweep.csv      with --sweep        capacity.csv    with a budget
fleet.csv      with --servers auto      replicas.csv    where the number of servers scales
NAME.png       each picture
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.artifacts.plan import Plan
from optimizer.simulate.budget import BudgetView
from optimizer.simulate.error_ranges import LatencyRanges
from optimizer.simulate.fleet import FleetSize
from optimizer.simulate.measures import Measures, tbt_s
from optimizer.simulate.record import Record, ReplicaCount, RequestRow
from optimizer.simulate.report.charts import charts_of
from optimizer.simulate.report.draw import write_png
from optimizer.simulate.report.page import page
from optimizer.simulate.report.subject import subject_of
from optimizer.simulate.scenario import Scenario
from optimizer.simulate.sweep import SweepPoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What one run of the command found. `ranges`: how sure the two medians are."""

    scenario: Scenario
    plan: Plan
    records: Sequence[Record]
    measures: Measures
    budget: BudgetView | None = None
    fleet: FleetSize | None = None
    sweep: tuple[SweepPoint, ...] = ()
    ranges: LatencyRanges | None = None

    @property
    def subject(self) -> dict[str, str]:
        """What was simulated, in words."""
        return subject_of(self.scenario, self.plan)

    def to_json(self) -> dict[str, Any]:
        """The object that `splitpoint simulate --json` prints."""
        found = {"subject": self.subject, **self.measures.to_json()}
        if self.ranges is not None:
            found["median_ranges"] = asdict(self.ranges)
        if self.budget is not None:
            found["budget"] = asdict(self.budget)
        if self.fleet is not None:
            found["fleet"] = asdict(self.fleet)
        if self.sweep:
            found["sweep"] = [
                {"values": point.values, **point.measures.to_json()} for point in self.sweep
            ]
        return found


def write_files(findings: Findings, folder: Path) -> None:
    """Write all files of the module's docstring, replacing those of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    scenario, records, measures = findings.scenario, findings.records, findings.measures
    curve = () if findings.budget is None else findings.budget.curve
    charts = charts_of(scenario, records, measures, curve)
    for chart in charts:
        write_png(chart, folder / f"{chart.name}.png")
    html = page(
        scenario,
        measures,
        charts,
        subject=findings.subject,
        budget=findings.budget,
        sweep=findings.sweep,
        ranges=findings.ranges,
    )
    (folder / "report.html").write_text(html, encoding="utf-8")
    (folder / "measures.json").write_text(
        json.dumps(findings.to_json(), indent=1) + "\n", encoding="utf-8"
    )
    _write_csv(
        folder / "requests.csv",
        ("replication", *RequestRow._fields),
        ((number, *row) for number, record in enumerate(records) for row in record.requests),
    )
    levels, gaps = np.linspace(0, 1, 1001), tbt_s(records)
    if gaps.size:
        quantiles = np.quantile(gaps, levels)
        _write_csv(folder / "tbt.csv", ("quantile", "tbt_s"), zip(levels, quantiles, strict=True))
    if findings.budget is not None:
        points = [asdict(point) for point in findings.budget.curve]
        _write_csv(folder / "capacity.csv", tuple(points[0]), (p.values() for p in points))
    if findings.fleet is not None:
        tried = [asdict(point) for point in findings.fleet.tried]
        _write_csv(folder / "fleet.csv", tuple(tried[0]), (point.values() for point in tried))
    if scenario.servers.scaling is not None:
        _write_csv(
            folder / "replicas.csv",
            ("replication", *ReplicaCount._fields),
            ((number, *one) for number, record in enumerate(records) for one in record.replicas),
        )
    if findings.sweep:
        rows = [(point.label, *_flat(point.measures).values()) for point in findings.sweep]
        _write_csv(folder / "sweep.csv", ("sweep", *_flat(findings.sweep[0].measures)), rows)


def _flat(measures: Measures) -> dict[str, float]:
    """The numbers of a sweep's row."""
    found: dict[str, float] = {}
    for name, value in measures.to_json().items():
        if name in ("ttft_s", "tbt_s", "e2e_s"):
            found |= {f"{name}_{quantile}": number for quantile, number in value.items()}
        elif isinstance(value, (int, float)):
            found[name] = value
    return found


def _write_csv(path: Path, head: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)

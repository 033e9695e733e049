"""Refining wrong profiles with a grid's own log: what is learned, and when there is nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.planning.grid_predict import TwoMachines
from benchmarks.planning.wrong_profile import WRONG, log_of, refined_lines, refined_rows
from optimizer.measured.log import MeasurementLog
from tests.optimizer.measured import hours
from tests.optimizer.measured.hours import CLOUD_MACHINE, EDGE

TRUE = TwoMachines(edge=EDGE, cloud=CLOUD_MACHINE, model=Path("unused"))
REPEATS: dict[str, Any] = {"repeats": [{"cells": {"a cell": {"took_s": 120.0}}}, {"cells": {}}]}


def step_s(machines: TwoMachines) -> float:
    """Seconds that grow as the device's rates fall."""
    return 1 / machines.edge.kernels[0].decode.points[0].bytes_per_s


def rows_of(_results: dict[str, Any], of: Any) -> list[dict[str, Any]]:
    """One figure, whose error is that of a rate, and one that nobody asked for."""
    error = step_s(of(1)) / step_s(TRUE) - 1
    row = {"group": "plan", "figure": "TBT", "error": error}
    return [row, {**row, "figure": "memory"}]


def found_with(folder: Path, count: int) -> dict[str, Any] | None:
    log = MeasurementLog(log_of(folder, 0))
    for record in (*hours.generations(count), *hours.servings(count)):
        log.append(record)
    return refined_rows(REPEATS, lambda _: TRUE, folder, rows_of)


def test_rates_come_back_and_the_page_says_from_what(tmp_path: Path) -> None:
    found = found_with(tmp_path, 60)
    assert found is not None
    (wrong,), (refined,) = found["wrong"], found["refined"]
    assert wrong["error"] == pytest.approx(1 / WRONG - 1)
    assert abs(refined["error"]) < 0.1
    text = "\n".join(refined_lines(found))
    assert "120 lines that the programs of 2 minutes wrote" in text
    assert "| TBT | 1 | 33.3% | -33.3% |" in text
    assert "measured afterwards" in text


def test_without_a_log_or_with_too_little_in_it_there_is_no_section(tmp_path: Path) -> None:
    assert refined_rows(REPEATS, lambda _: TRUE, tmp_path, rows_of) is None
    assert found_with(tmp_path, 1) is None
    assert refined_lines(None) == []

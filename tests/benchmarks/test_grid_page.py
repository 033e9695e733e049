"""What the page of predictions over a grid says of bigger models."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.planning.grid_page import SMALL_FRONT, page, scaling_errors


def row(group: str, cell: str, figure: str, error: float) -> dict[str, Any]:
    return {
        "group": group, "cell": cell, "figure": figure, "error": error, "errors": [error],
        "p10": 0.9, "p50": 1.0, "p90": 1.1, "measured": 1.0, "covered": [True], "repeats": 1,
        "busy": 0,
    }  # fmt: skip


SMALL = [
    *(row("front", SMALL_FRONT, f"decode at {at}", -0.10) for at in (16, 512, 1536)),
    row("front", SMALL_FRONT, "128 rows", 0.05),
    row("front", "split 10, 4 bits, KV 8", "decode at 16", 0.7),
]
LARGE = [
    row("large", "1.5B, 4 bits", "decode at 16", -0.19),
    row("large", "1.5B, 4 bits", "decode at 192", -0.19),
    row("large", "1.5B, 4 bits", "64 rows", 0.05),
    row("large", "1.5B, 4 bits", "memory", 0.4),
]


def test_what_the_small_model_is_off_by_is_no_scaling_error() -> None:
    decode, prompt = scaling_errors([*SMALL, *LARGE])
    assert (decode["cell"], decode["kind"]) == ("1.5B, 4 bits", "decode")
    assert decode["scaling"] == pytest.approx(-0.10)
    assert (prompt["kind"], prompt["scaling"]) == ("prompt", pytest.approx(0.0))


def test_a_servers_steps_are_scaled_by_their_sessions() -> None:
    rows = [
        row("server", "8 sessions", "server's step", 0.1),
        row("large", "3B server, 8 bits", "server's step, 1 sessions", 0.5),
        row("large", "3B server, 8 bits", "server's step, 8 sessions", 0.21),
    ]
    (found,) = scaling_errors(rows)
    assert (found["kind"], found["scaling"]) == ("server, 8 sessions", pytest.approx(0.1))


def test_the_page_has_it_where_both_were_measured() -> None:
    results: dict[str, Any] = {"machine": {}, "repeats": []}
    assert "| 1.5B, 4 bits | decode | -10.0% | -19.0% | -10.0% |" in page(results, [*SMALL, *LARGE])
    for some in (SMALL, LARGE):
        assert "without a new profile" not in page(results, some)

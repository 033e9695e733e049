"""How traces of real edges become the flights that the simulator draws."""

from __future__ import annotations

from typing import Any

from benchmarks.simulation.replay_calibration import flown
from benchmarks.simulation.replayed_fleet import Run
from optimizer.simulate.scenario import FlightFrame, MeasuredFlight


def step(sequence: int, rows: int, tokens: int, *, ahead: bool = False) -> dict[str, Any]:
    phase = "prefill" if sequence == 0 else "decode"
    return {
        "sequence": sequence, "phase": phase, "num_rows": rows, "num_new_tokens": tokens,
        "ahead": ahead,
    }  # fmt: skip


def test_frames_ahead_belong_to_the_step_before_them() -> None:
    first = [
        step(0, 20, 1),
        step(1, 1, 1),
        step(3, 2, 0, ahead=True),  # answered before the frame sent before it
        step(2, 2, 2, ahead=True),
        step(4, 1, 1),
    ]
    second = [step(0, 20, 1), step(1, 3, 2)]
    found = flown(Run(edges=[{"asked": [], "steps": [*first, *second]}], link_age_s=0.0))
    assert found == (
        MeasuredFlight(
            frames=(
                FlightFrame(rows=1, tokens=1),
                FlightFrame(rows=2, tokens=2),
                FlightFrame(rows=2, tokens=0),
            )
        ),
        MeasuredFlight(frames=(FlightFrame(rows=1, tokens=1),)),
        MeasuredFlight(frames=(FlightFrame(rows=3, tokens=2),)),
    )

"""What the stream tells of an answer's cost while it is made."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from edge.api.page.live import STEP_FIELDS, LiveFigures
from edge.step_trace import StepTrace


def step(sequence: int, **changes: Any) -> StepTrace:
    numbers = {
        name: 0
        for name in (*STEP_FIELDS, "first_position", "hidden_bytes")
        if name not in ("decision", "ahead")
    }
    fields = {**numbers, "sequence": sequence, "phase": "decode", "level": "q2", **changes}
    return StepTrace(**fields)


def run_of(steps: list[StepTrace], times_s: list[float]) -> Any:
    return SimpleNamespace(
        steps_since=lambda number: tuple(steps[number:]),
        token_times_since=lambda number: tuple(times_s[number:]),
    )


def test_each_step_and_each_time_is_told_once() -> None:
    steps, times_s = [step(0, first_position=4, num_rows=2)], [0.5]
    live = LiveFigures([run_of(steps, times_s)])
    first = live.added_to({"id": "x"})["splitpoint"]
    assert [one["sequence"] for one in first["steps"]] == [0]
    assert first["token_times_s"] == [0.5]
    assert first["kv_tokens"] == 6
    steps.append(step(1))
    times_s.append(0.7)
    second = live.added_to({})["splitpoint"]
    assert [one["sequence"] for one in second["steps"]] == [1]
    assert second["token_times_s"] == [0.7]
    assert live.added_to({})["splitpoint"] == {"steps": [], "token_times_s": []}


def test_what_a_chunk_says_of_itself_stays() -> None:
    live = LiveFigures([run_of([], [0.1])])
    figures = live.added_to({"splitpoint": {"finish_reason": "stop"}})["splitpoint"]
    assert figures == {"finish_reason": "stop", "steps": [], "token_times_s": [0.1]}


def test_an_error_stays_an_error() -> None:
    assert LiveFigures([run_of([], [0.1])]).added_to({"error": {}}) == {"error": {}}

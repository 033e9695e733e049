"""The figures of a completion, computed by hand from a few steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edge.generation.report import Completion, breakdown, draft_figures
from edge.step_trace import StepTrace
from tests.edge.generation.steps import step_trace

STEPS = (
    step_trace(phase="prefill", num_rows=4, num_new_tokens=1, hidden_bytes=100),
    step_trace(num_rows=3, num_drafts=2, num_new_tokens=2, hidden_bytes=60, expected_tokens=2.2),
    step_trace(num_rows=1, num_new_tokens=1, hidden_bytes=20, ahead=True),
    step_trace(num_rows=2, num_drafts=1, num_new_tokens=0, hidden_bytes=40, ahead=True),
)


def completion(steps: tuple[StepTrace, ...] = STEPS, **changes: Any) -> Completion:
    made = Completion(
        text="ab",
        token_ids=(1, 2, 3, 4),
        logprobs=(),
        finish_reason="length",
        finish_detail="",
        num_prompt_tokens=4,
        hidden_size=8,
        token_times_s=(1.0, 1.5, 1.5, 3.0),
        steps=steps,
        reconnects=0,
        total_s=4.0,
    )
    return replace(made, **changes)


def test_times_to_the_first_and_between_tokens() -> None:
    done = completion()
    assert done.ttft_s == 1.0
    assert done.tbt_quantile_s(0.5) == 0.5
    assert done.tbt_quantile_s(1.0) == 1.5
    assert done.tokens_per_s == pytest.approx(3 / 2.0)


@pytest.mark.parametrize("times_s", [(), (1.0,), (1.0, 1.0)])
def test_too_few_tokens_have_no_rate(times_s: tuple[float, ...]) -> None:
    assert completion(token_times_s=times_s).tokens_per_s == 0.0
    assert completion(token_times_s=times_s).tbt_quantile_s(0.5) == 0.0


def test_bits_are_counted_for_each_element_sent() -> None:
    assert completion().bits_per_element == pytest.approx(8 * 220 / (10 * 8))
    assert completion(steps=()).bits_per_element == 0.0


def test_a_frame_sent_ahead_is_no_round_trip_of_its_own() -> None:
    report = completion().to_json()
    assert report["round_trips"] == 2
    assert report["tokens_per_round_trip"] == 2.0
    assert "logprobs" not in report


def test_drafts_are_counted_in_frames_that_brought_tokens() -> None:
    assert draft_figures(STEPS) == pytest.approx(
        {
            "sent": 2 + 1,  # the first row of a frame ahead is a guess too
            "accepted": 1 + 1,
            "frames": 2,
            "frames_ahead": 1,
            "frames_void": 1,
            "tokens_per_frame": 1.5,
            "expected_tokens_per_frame": 1.6,
        }
    )
    assert draft_figures([])["tokens_per_frame"] == 0.0


def test_the_breakdown_is_a_mean_of_one_phase() -> None:
    steps = [step_trace(front_s=0.1), step_trace(front_s=0.3), step_trace(phase="prefill")]
    assert breakdown(steps, "decode")["front"] == pytest.approx(0.2)
    assert breakdown(steps[:2], "prefill") == {}

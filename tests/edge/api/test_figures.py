"""The figures of the local API add up, and have nothing of the text in them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from edge.api.figures import ApiFigures


def done(reason: str, tokens: int, ttft_s: float) -> Any:
    return SimpleNamespace(
        finish_reason=reason,
        num_prompt_tokens=10,
        token_ids=tuple(range(tokens)),
        ttft_s=ttft_s,
        reconnects=1,
        to_json=lambda: {"uplink_bytes": 300, "downlink_bytes": 20},
    )


def test_counters_add_up_and_gauges_are_asked() -> None:
    figures = ApiFigures(lambda: 2, lambda: 1)
    figures.answered(200)
    figures.answered(200)
    figures.answered(429)
    figures.completed([done("stop", 5, 0.25), done("cancelled", 0, 0.0)])
    lines = figures.text().splitlines()
    for line in (
        "splitpoint_api_running 2",
        "splitpoint_api_waiting 1",
        'splitpoint_api_requests_total{status="200"} 2',
        'splitpoint_api_requests_total{status="429"} 1',
        'splitpoint_api_answers_total{finish_reason="stop"} 1',
        "splitpoint_api_prompt_tokens_total 20",
        "splitpoint_api_tokens_total 5",
        "splitpoint_api_uplink_bytes_total 600",
        "splitpoint_api_ttft_seconds_sum 0.25",
        "splitpoint_api_ttft_seconds_count 1",
        "splitpoint_api_reconnects_total 2",
    ):
        assert line in lines
    named = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(named) == len(set(named))

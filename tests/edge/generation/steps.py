"""Answered steps for the tests of those that watch them."""

from __future__ import annotations

from typing import Any

from edge.generation.step_observer import AnsweredStep
from edge.step_trace import StepTrace


def step_trace(**changes: Any) -> StepTrace:
    """A plain decode step of one row: 2 ms on the edge, 4 ms in the cloud, 50 ms on the wire."""
    values: dict[str, Any] = {
        "sequence": 0,
        "phase": "decode",
        "first_position": 10,
        "num_rows": 1,
        "num_drafts": 0,
        "num_new_tokens": 1,
        "level": "lossless",
        "front_s": 0.002,
        "encode_s": 0.0,
        "round_trip_s": 0.054,
        "wire_s": 0.05,
        "cloud_codec_s": 0.0,
        "cloud_queue_s": 0.0,
        "cloud_compute_s": 0.004,
        "cloud_sample_s": 0.0,
        "batch_sessions": 1,
        "hidden_bytes": 700,
        "uplink_bytes": 740,
        "downlink_bytes": 40,
    }
    return StepTrace(**{**values, **changes})


def answered_step(
    *token_ids: int, at_s: float = 0.0, alone: bool = True, **changes: Any
) -> AnsweredStep:
    """The step of `step_trace(**changes)`, answered with `token_ids`."""
    trace = step_trace(num_new_tokens=len(token_ids), **changes)
    step_s = trace.edge_s + trace.round_trip_s
    return AnsweredStep(trace, token_ids, at_s=at_s, alone=alone, step_s=step_s)

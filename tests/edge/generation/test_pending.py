"""A pending frame becomes a trace: who took which part of the round trip."""

from __future__ import annotations

import pytest

from edge.generation.pending import ArrivedResult, PendingStep
from edge.generation.row_span import RowSpan
from protos.messages import Result, Timings

PENDING = PendingStep(
    rows=RowSpan(7, (1, 2, 3), 2, True, ahead=True),
    is_prefill=False,
    started_s=10.0,
    front_s=0.25,
    encode_s=0.05,
    sent_s=10.3,
    level="q2",
    hidden_bytes=100,
    uplink_bytes=140,
    alone=True,
    expected_tokens=2.5,
)


def arrived(at_s: float) -> ArrivedResult:
    timings = Timings(
        codec_s=0.1, queue_s=0.2, compute_s=0.3, sample_s=0.1, batch_sessions=4, batch_rows=9
    )
    result = Result(sequence=5, token_ids=(2, 9), num_tokens=9, timings=timings)
    return ArrivedResult(result, num_bytes=60, at_s=at_s)


def test_the_round_trip_is_the_clouds_time_and_the_rest() -> None:
    step = PENDING.trace(arrived(11.5), 2)
    assert step.round_trip_s == pytest.approx(1.2)
    assert step.cloud_s == pytest.approx(0.7)
    assert step.wire_s == pytest.approx(0.5)
    assert step.edge_s == pytest.approx(0.3)


def test_a_cloud_that_claims_more_than_the_round_trip_leaves_no_negative_wire_time() -> None:
    assert PENDING.trace(arrived(10.5), 2).wire_s == 0.0


def test_the_trace_says_what_was_sent_and_what_came() -> None:
    step = PENDING.trace(arrived(11.5), 2)
    assert (step.sequence, step.phase, step.first_position) == (5, "decode", 7)
    assert (step.num_rows, step.num_drafts, step.num_new_tokens) == (3, 2, 2)
    assert (step.hidden_bytes, step.uplink_bytes, step.downlink_bytes) == (100, 140, 60)
    assert (step.level, step.ahead, step.expected_tokens) == ("q2", True, 2.5)
    assert step.batch_sessions == 4
    assert PENDING._replace(is_prefill=True).trace(arrived(11.5), 0).phase == "prefill"

"""Frames on their way: what is known of each before its answer comes, and its trace after."""

from __future__ import annotations

from typing import NamedTuple

from edge.generation.row_span import RowSpan
from edge.step_trace import StepTrace
from protos.messages import Result


class ArrivedResult(NamedTuple):
    """A result, its size on the wire in bytes, and when it had arrived in seconds."""

    result: Result
    num_bytes: int
    at_s: float


class PendingStep(NamedTuple):
    """A frame that was sent. `alone`: no other frame was on its way then. Seconds and bytes."""

    rows: RowSpan
    is_prefill: bool
    started_s: float
    front_s: float
    encode_s: float
    sent_s: float
    level: str
    hidden_bytes: int
    uplink_bytes: int
    alone: bool
    expected_tokens: float = 1.0

    def trace(self, arrived: ArrivedResult, num_new_tokens: int) -> StepTrace:
        """This frame's life, now that its answer is there."""
        timings = arrived.result.timings
        round_trip_s = arrived.at_s - self.sent_s
        return StepTrace(
            sequence=arrived.result.sequence,
            phase="prefill" if self.is_prefill else "decode",
            first_position=self.rows.first_position,
            num_rows=len(self.rows.token_ids),
            num_drafts=self.rows.num_drafts,
            num_new_tokens=num_new_tokens,
            level=self.level,
            front_s=self.front_s,
            encode_s=self.encode_s,
            round_trip_s=round_trip_s,
            wire_s=max(round_trip_s - timings.total_s, 0.0),
            cloud_codec_s=timings.codec_s,
            cloud_queue_s=timings.queue_s,
            cloud_compute_s=timings.compute_s,
            cloud_sample_s=timings.sample_s,
            batch_sessions=timings.batch_sessions,
            hidden_bytes=self.hidden_bytes,
            uplink_bytes=self.uplink_bytes,
            downlink_bytes=arrived.num_bytes,
            ahead=self.rows.ahead,
            expected_tokens=self.expected_tokens,
        )

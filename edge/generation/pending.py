"""Frames on their way: what is known of each before its answer comes, and its trace after."""

from __future__ import annotations

from typing import NamedTuple

from edge.generation.report import StepTrace
from edge.generation.session import Rows
from optimizer.policy.prefill_chunks import StageTimes
from protos.messages import Result


class Answer(NamedTuple):
    """A result, its size on the wire, and when it had arrived."""

    result: Result
    num_bytes: int
    at_s: float


class PendingStep(NamedTuple):
    """A frame that was sent. `alone`: no other one was on its way then."""

    rows: Rows
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

    def trace(self, answer: Answer, num_new_tokens: int) -> StepTrace:
        """This frame's life, now that its answer is there."""
        timings = answer.result.timings
        round_trip_s = answer.at_s - self.sent_s
        return StepTrace(
            sequence=answer.result.sequence,
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
            downlink_bytes=answer.num_bytes,
            ahead=self.rows.ahead,
            expected_tokens=self.expected_tokens,
        )


def stage_times(step: StepTrace, seconds_per_byte: float) -> StageTimes:
    """How long a prefill chunk kept each stage busy; the link's part from its estimated rate."""
    return StageTimes(
        num_tokens=step.num_rows,
        edge_s=step.edge_s,
        link_s=step.uplink_bytes * seconds_per_byte,
        cloud_s=step.cloud_codec_s + step.cloud_compute_s + step.cloud_sample_s,
    )

"""What one frame cost, from the front's first row to the cloud's answer.

Every subpackage of the edge may import this module: drafters learn from traces, and the client
reports them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

IDS_LEVEL: Final = "ids"  # of a step that sent token ids and no hidden state
KV_LEVELS: Final = "kv:"  # begins the level of a step that sent keys and values beside ids
LOCAL_LEVEL: Final = "none"  # of a step that sent nothing: the device ran every layer


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTrace:
    """One frame's life. Times in seconds, on the edge's clock unless the cloud reported them.

    `round_trip_s` runs from handing the frame to the transport until its answer has arrived.
    `wire_s` is that time less the cloud's own times (codec, queue, compute, sample): link, kernel
    and gRPC on both sides. Prefill chunks overlap, so theirs include waiting for earlier chunks.
    `num_new_tokens` is 0 for a chunk that asked for none. `decision`: what the level control
    changed because of this step, and why; empty when nothing changed. `ahead`: the frame was sent
    before the previous answer had arrived; `num_new_tokens` 0 then means a wrong guess.
    `expected_tokens`: how many tokens the drafter expected from the frame (1 without drafts).
    `split`: the layers that the device ran for it; -1: unknown.
    """

    sequence: int
    phase: str  # "prefill" or "decode"
    first_position: int
    num_rows: int
    num_drafts: int
    num_new_tokens: int
    level: str
    front_s: float
    encode_s: float
    round_trip_s: float
    wire_s: float
    cloud_codec_s: float
    cloud_queue_s: float
    cloud_compute_s: float
    cloud_sample_s: float
    batch_sessions: int
    hidden_bytes: int
    uplink_bytes: int
    downlink_bytes: int
    decision: str = ""
    ahead: bool = False
    expected_tokens: float = 1.0
    split: int = -1

    @property
    def is_ids(self) -> bool:
        """Whether the frame was token ids, whose rows the cloud computed."""
        return self.level == IDS_LEVEL

    @property
    def is_kv(self) -> bool:
        """Whether the frame brought keys and values, so that the cloud computed nothing."""
        return self.level.startswith(KV_LEVELS)

    @property
    def edge_s(self) -> float:
        """Seconds that the edge worked on the frame: front and encoder."""
        return self.front_s + self.encode_s

    @property
    def cloud_s(self) -> float:
        """Seconds that the cloud held the frame, its queue included."""
        return self.cloud_codec_s + self.cloud_queue_s + self.cloud_compute_s + self.cloud_sample_s

"""How many prompt tokens the next frame takes: what was measured, handed to the policy.

The policy is `optimizer.policy.prefill_chunks`. This module collects its input from the answered
chunks.
"""

from __future__ import annotations

from edge.generation.level_selector import LevelSelector
from edge.generation.step_observer import AnsweredStep
from edge.step_trace import StepTrace
from optimizer.policy.prefill_chunks import StageTimes, next_chunk


class ChunkSizer:
    """Chunk sizes of one generation. A StepWatcher, behind its `selector`.

    max_tokens: the most prompt tokens a frame, or always so many if not `adaptive`. selector:
    knows what the prefill has shown of the uplink.
    """

    def __init__(self, max_tokens: int, *, selector: LevelSelector, adaptive: bool = True) -> None:
        self.max_tokens = max_tokens
        self._selector = selector
        self._adaptive = adaptive
        self._answered: list[StageTimes] = []

    def next_tokens(self, num_left: int) -> int:
        """Tokens of the next chunk, of `num_left` prompt tokens that are not sent yet."""
        if not self._adaptive:
            return self.max_tokens
        return next_chunk(num_left, self.max_tokens, self._answered)

    def answered(self, step: AnsweredStep) -> str:
        """See StepWatcher: remembers how long a chunk kept each stage busy."""
        if step.is_prefill and step.trace.hidden_bytes:
            self._answered.append(stage_times(step.trace, self._selector.seconds_per_byte))
        return ""


def stage_times(step: StepTrace, seconds_per_byte: float) -> StageTimes:
    """How long a prefill chunk kept each stage busy; the link's part from its estimated rate."""
    return StageTimes(
        num_tokens=step.num_rows,
        edge_s=step.edge_s,
        link_s=step.uplink_bytes * seconds_per_byte,
        cloud_s=step.cloud_codec_s + step.cloud_compute_s + step.cloud_sample_s,
    )

"""A generation that never leaves the device: the plan puts every layer and the head here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Sequence

import numpy as np

from decoding.params import SamplingParams
from decoding.sampler import sample
from edge.generation.token_source import FrontSegment, NewToken
from edge.step_trace import StepTrace
from optimizer.policy.retry import Clock

LOCAL_LEVEL = "none"  # nothing is sent, so nothing is encoded


class LocalGeneration:
    """A TokenSource without a cloud; the front gives logits instead of hidden states.

    chunk_tokens: the most prompt tokens that go through the front at once.
    """

    reconnects = 0

    def __init__(
        self,
        *,
        front: FrontSegment,
        sampling: SamplingParams,
        chunk_tokens: int,
        clock: Clock,
    ) -> None:
        self._front = front
        self._sampling = sampling
        self._chunk_tokens = chunk_tokens
        self._clock = clock
        self._cancelled = False

    def cancel(self) -> None:
        """See TokenSource."""
        self._cancelled = True

    def tokens(
        self, prompt_ids: Sequence[int], on_step: Callable[[StepTrace], None]
    ) -> Generator[NewToken, None, None]:
        """Yield new tokens until the caller stops iterating; `on_step` gets every forward."""
        tokens = list(prompt_ids)
        num_done = 0
        for sequence in itertools.count():
            if self._cancelled:
                return
            chunk = tokens[num_done : num_done + self._chunk_tokens]
            started_s = self._clock.now()
            logits = self._front.forward(np.asarray(chunk, dtype=np.int64))  # [T, V]
            computed_s = self._clock.now()
            is_last = num_done + len(chunk) == len(tokens)
            if is_last:
                token = sample(logits[-1], self._sampling, position=len(tokens), seen=tokens)
            finished_s = self._clock.now()
            on_step(
                _local_step(
                    sequence=sequence,
                    first_position=num_done,
                    num_rows=len(chunk),
                    is_prefill=num_done < len(prompt_ids),
                    num_new_tokens=int(is_last),
                    front_s=computed_s - started_s,
                    sample_s=finished_s - computed_s,
                )
            )
            num_done += len(chunk)
            if is_last:
                tokens.append(token.token_id)
                yield NewToken(token.token_id, token.logprob, finished_s)


def _local_step(
    *,
    sequence: int,
    first_position: int,
    num_rows: int,
    is_prefill: bool,
    num_new_tokens: int,
    front_s: float,
    sample_s: float,
) -> StepTrace:
    return StepTrace(
        sequence=sequence,
        phase="prefill" if is_prefill else "decode",
        first_position=first_position,
        num_rows=num_rows,
        num_drafts=0,
        num_new_tokens=num_new_tokens,
        level=LOCAL_LEVEL,
        front_s=front_s + sample_s,
        encode_s=0.0,
        round_trip_s=0.0,
        wire_s=0.0,
        cloud_codec_s=0.0,
        cloud_queue_s=0.0,
        cloud_compute_s=0.0,
        cloud_sample_s=0.0,
        batch_sessions=0,
        hidden_bytes=0,
        uplink_bytes=0,
        downlink_bytes=0,
    )

"""A generation that never leaves the device: the plan puts every layer and the head here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Sequence
from typing import Protocol

import numpy as np

from decoding.errors import GrammarError
from decoding.params import SamplingParams
from decoding.penalties import Logits, TokenMask
from decoding.sampler import Sampled, sample, score
from decoding.scores import TokenScore
from edge.errors import InputError
from edge.generation.token_source import FrontSegment, NewToken
from edge.step_trace import LOCAL_LEVEL, StepTrace
from optimizer.policy.retry import Clock


class AnswerMatcher(Protocol):
    """What masks the tokens of one answer; `edge.generation.local_grammars` makes one."""

    def masks(self, answer: Sequence[int]) -> list[TokenMask]:
        """The tokens that may come after `answer`: one mask. Raises GrammarError."""
        ...


class LocalGeneration:
    """A TokenSource without a cloud; the front gives logits instead of hidden states.

    chunk_tokens: the most prompt tokens that go through the front at once. The front gives logits
    after the last of them only, so a prompt whose log-probabilities are asked for goes one by one.
    num_prompt: how many of the first tokens are no part of the answer; None: the whole prompt.
    matcher: what the answer has to match. A grammar that fails on the way is an InputError.
    """

    reconnects = 0

    def __init__(
        self,
        *,
        front: FrontSegment,
        sampling: SamplingParams,
        chunk_tokens: int,
        clock: Clock,
        num_prompt: int | None = None,
        matcher: AnswerMatcher | None = None,
    ) -> None:
        self._front = front
        self._sampling = sampling
        self._chunk_tokens = chunk_tokens if sampling.prompt_logprobs is None else 1
        self._num_prompt = num_prompt
        self._matcher = matcher
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
        num_prompt = len(tokens) if self._num_prompt is None else self._num_prompt
        scores: list[TokenScore] = []
        num_done = 0
        self._front.rollback(0)
        for sequence in itertools.count():
            if self._cancelled:
                return
            chunk = tokens[num_done : num_done + self._chunk_tokens]
            started_s = self._clock.now()
            logits = self._front.forward(np.asarray(chunk, dtype=np.int64))  # [T, V]
            computed_s = self._clock.now()
            is_last = num_done + len(chunk) == len(tokens)
            if is_last:
                token = self._sampled(logits[-1], tokens, num_prompt)
            elif self._sampling.prompt_logprobs is not None:
                scores.append(
                    score(logits[-1], tokens[num_done + 1], self._sampling.prompt_logprobs)
                )
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
                yield NewToken(token.token_id, token.logprob, finished_s, token.top, tuple(scores))
                scores.clear()

    def _sampled(self, logits: Logits, tokens: Sequence[int], num_prompt: int) -> Sampled:
        """The token after `tokens`. logits: [V]. Raises InputError where the grammar fails."""
        mask = None
        if self._matcher is not None:
            try:
                (mask,) = self._matcher.masks(tokens[num_prompt:])
            except GrammarError as error:
                raise InputError(str(error)) from error
        return sample(
            logits,
            self._sampling,
            position=len(tokens),
            seen=tokens,
            num_prompt=num_prompt,
            mask=mask,
        )


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

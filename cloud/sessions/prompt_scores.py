"""The log-probabilities of a prompt's tokens, while the prompt comes frame by frame.

The logits of a row say how likely the token after it is. So the last row of a frame waits for the
first token of the next one. That is one row of logits a session, until its prompt ends.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cloud.engine.batch_entry import FloatRows
from cloud.errors import BadFrameError
from decoding.params import SamplingParams
from decoding.sampler import score
from decoding.scores import TokenScore
from protos.messages import Frame, Result


class PromptScores:
    """Of one session. num_prompt: tokens of its prompt. num_top: most likely tokens beside each."""

    def __init__(self, *, num_prompt: int, num_top: int) -> None:
        self._num_prompt = num_prompt
        self._num_top = num_top
        self._last_row: FloatRows | None = None
        self._last_position = -1
        self._next_ids: Sequence[int] = ()  # the token after each row of the frame, where known
        self._scores: list[TokenScore] = []

    def num_watched(self, frame: Frame) -> int:
        """How many first rows of the frame say something about a token of the prompt."""
        return max(0, min(len(frame.token_ids), self._num_prompt - 1 - frame.first_position))

    def begin(self, frame: Frame) -> None:
        """Score the frame's first token by the row before it. BadFrameError without that row."""
        self._scores = []
        self._next_ids = frame.token_ids[1:]
        if not 0 < frame.first_position < self._num_prompt:
            return
        if self._last_row is None or self._last_position != frame.first_position - 1:
            raise BadFrameError(
                f"frame {frame.sequence} does not follow the one before it, and the session wants "
                "the log-probabilities of its prompt"
            )
        self._scores.append(score(self._last_row, frame.token_ids[0], self._num_top))

    def take(self, frame: Frame, first_row: int, logits: FloatRows) -> None:
        """Rows `first_row`, ... of the frame have these logits, [C, V]. Never raises."""
        for index, row in enumerate(logits, start=first_row):
            if index < len(self._next_ids):
                self._scores.append(score(row, self._next_ids[index], self._num_top))
            else:
                self._last_row = row.copy()
                self._last_position = frame.first_position + index

    def filled(self, result: Result, frame: Frame) -> Result:
        """`result` with the log-probabilities of the frame's prompt tokens.

        Raises BadFrameError where they are no numbers, because the rows overflow the model.
        """
        scores, self._scores = self._scores, []
        if frame.first_position + len(frame.token_ids) >= self._num_prompt:
            self._last_row = None
        tops = [top for token in scores for top in token.top]
        logprobs = tuple(token.logprob for token in scores)
        if not np.isfinite([*logprobs, *(top.logprob for top in tops)]).all():
            raise BadFrameError(f"frame {frame.sequence}: its rows overflow the model")
        return replace(
            result,
            prompt_logprobs=logprobs,
            prompt_top_ids=array("I", (top.token_id for top in tops)),
            prompt_top_logprobs=array("f", (top.logprob for top in tops)),
        )


def scores_of(sampling: SamplingParams, num_prompt: int, *, reports: bool) -> PromptScores | None:
    """Those of a session that wants log-probabilities of its prompt, or `reports` how surprising
    its tokens were; None: it wants none."""
    if sampling.prompt_logprobs is None and not reports:
        return None
    return PromptScores(num_prompt=num_prompt, num_top=sampling.prompt_logprobs or 0)

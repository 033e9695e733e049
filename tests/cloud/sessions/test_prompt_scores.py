"""A prompt's log-probabilities do not depend on its frames, and one row waits between two."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.errors import BadFrameError
from cloud.sessions.prompt_scores import PromptScores
from decoding.sampler import score
from protos.messages import Frame, Result

VOCAB = 11
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
# Row i says what follows token i.
LOGITS = np.random.default_rng(5).normal(size=(len(PROMPT), VOCAB)).astype(np.float32)


def frame(sequence: int, first: int, *ids: int) -> Frame:
    return Frame(sequence=sequence, first_position=first, token_ids=ids, hidden=b"")


def run(scores: PromptScores, sent: Frame, *, step: int = 3) -> Result:
    """The frame's rows in batches of `step`, as the engine shows them."""
    scores.begin(sent)
    end = sent.first_position + scores.num_watched(sent)
    for begin in range(sent.first_position, end, step):
        scores.take(sent, begin - sent.first_position, LOGITS[begin : min(begin + step, end)])
    return scores.filled(Result(sequence=sent.sequence, token_ids=(), num_tokens=0), sent)


@given(cuts=st.sets(st.integers(1, len(PROMPT) - 1)), step=st.integers(1, 8))
def test_every_token_but_the_first_gets_its_score_whatever_the_frames(
    cuts: set[int], step: int
) -> None:
    scores = PromptScores(num_prompt=len(PROMPT), num_top=2)
    ends = [*sorted(cuts), len(PROMPT)]
    logprobs: list[float] = []
    top_ids: list[int] = []
    for sequence, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
        result = run(scores, frame(sequence, begin, *PROMPT[begin:end]), step=step)
        logprobs += result.prompt_logprobs
        top_ids += result.prompt_top_ids
        assert len(result.prompt_top_logprobs) == len(result.prompt_top_ids)
    expected = [score(LOGITS[i], PROMPT[i + 1], 2) for i in range(len(PROMPT) - 1)]
    assert logprobs == [token.logprob for token in expected]
    assert top_ids == [top.token_id for token in expected for top in token.top]


def test_tokens_of_the_answer_get_none() -> None:
    scores = PromptScores(num_prompt=2, num_top=0)
    assert len(run(scores, frame(0, 0, *PROMPT[:4])).prompt_logprobs) == 1
    later = frame(1, 4, 5)
    assert scores.num_watched(later) == 0
    assert run(scores, later).prompt_logprobs == ()


def test_a_frame_that_leaves_the_prompts_order_is_refused() -> None:
    scores = PromptScores(num_prompt=8, num_top=0)
    run(scores, frame(0, 0, *PROMPT[:3]))
    with pytest.raises(BadFrameError, match="does not follow the one before it"):
        scores.begin(frame(1, 2, 4))


def test_rows_that_overflow_end_the_session() -> None:
    scores = PromptScores(num_prompt=4, num_top=1)
    sent = frame(0, 0, 1, 2, 3)
    scores.begin(sent)
    with np.errstate(all="ignore"):
        scores.take(sent, 0, np.full((3, VOCAB), np.nan, dtype=np.float32))
    with pytest.raises(BadFrameError, match="overflow the model"):
        scores.filled(Result(sequence=0, token_ids=(), num_tokens=3), sent)

"""Which answers a frame can have: tokens, vocabulary, log-probabilities, and the cache's length."""

from __future__ import annotations

import pytest

from edge.errors import SessionError
from edge.generation.answer_checks import AnswerTerms, check_answer
from protos.messages import Frame, Result

TERMS = AnswerTerms(vocab_size=50, with_logprobs=True, max_tokens=100)
CHUNK = Frame(sequence=0, first_position=0, token_ids=(1, 2, 3, 4), hidden=b"", want_token=False)
STEP = Frame(sequence=1, first_position=4, token_ids=(5, 6, 7), hidden=b"", num_drafts=2)


def answer(sequence: int, *token_ids: int, num_tokens: int, num_logprobs: int = -1) -> Result:
    count = len(token_ids) if num_logprobs < 0 else num_logprobs
    return Result(
        sequence=sequence, token_ids=token_ids, logprobs=(-1.0,) * count, num_tokens=num_tokens
    )


@pytest.mark.parametrize(("token_ids", "num_tokens"), [((9,), 5), ((6, 9), 6), ((6, 7, 49), 7)])
def test_a_step_is_answered_by_the_accepted_drafts_and_one_token(
    token_ids: tuple[int, ...], num_tokens: int
) -> None:
    check_answer(STEP, answer(1, *token_ids, num_tokens=num_tokens), TERMS, is_void=False)


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (answer(1, num_tokens=5), "has 0 tokens for 2 drafts"),
        (answer(1, 6, 7, 8, 9, num_tokens=8), "has 4 tokens for 2 drafts"),
        (answer(1, 7, 9, num_tokens=6), "accepts drafts that were not sent"),
        (answer(1, 50, num_tokens=5), "answered token 50, the vocabulary has 50"),
        (answer(1, 9, num_tokens=5, num_logprobs=0), "has 0 log-probabilities for 1 tokens"),
        (answer(1, 9, num_tokens=4), "cache holds 4 tokens, where the frames make 5"),
        (answer(1, 9, num_tokens=7), "cache holds 7 tokens, where the frames make 5"),
    ],
)
def test_a_step_has_no_other_answer(result: Result, reason: str) -> None:
    with pytest.raises(SessionError, match=reason):
        check_answer(STEP, result, TERMS, is_void=False)


def test_a_chunk_is_acknowledged_with_what_the_cache_then_holds() -> None:
    check_answer(CHUNK, answer(0, num_tokens=4), TERMS, is_void=False)
    with pytest.raises(SessionError, match="holds 3 tokens"):
        check_answer(CHUNK, answer(0, num_tokens=3), TERMS, is_void=False)


def test_a_void_frame_leaves_the_cache_as_it_was_within_the_sessions_limit() -> None:
    check_answer(STEP, answer(1, num_tokens=2), TERMS, is_void=True)
    with pytest.raises(SessionError, match="holds 101 tokens"):
        check_answer(STEP, answer(1, num_tokens=101), TERMS, is_void=True)


def test_what_nobody_asked_for_is_not_missed() -> None:
    plain = answer(1, 9, num_tokens=5, num_logprobs=0)
    check_answer(STEP, plain, AnswerTerms(vocab_size=50), is_void=False)
    check_answer(STEP, answer(1, 1 << 20, num_tokens=5), AnswerTerms(), is_void=False)

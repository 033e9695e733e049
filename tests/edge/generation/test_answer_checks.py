"""Which answers a frame can have: tokens, vocabulary, log-probabilities, and the cache's length."""

from __future__ import annotations

from array import array
from dataclasses import replace

import pytest

from decoding.scores import TopToken
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


SCORED = AnswerTerms(vocab_size=50, max_tokens=100, num_top=2, num_prompt=6, prompt_top=2)
TOP = (TopToken(3, -0.5), TopToken(4, -1.0))


def scored(sequence: int, num_scores: int, *, num_top: int = 2, last_id: int = 4) -> Result:
    """An answer without tokens, and so many log-probabilities of the prompt."""
    return Result(
        sequence=sequence,
        token_ids=(),
        num_tokens=4,
        prompt_logprobs=(-1.0,) * num_scores,
        prompt_top_ids=array("I", ([3, last_id] * num_scores)[: num_top * num_scores]),
        prompt_top_logprobs=array("f", ([-0.5, -1.0] * num_scores)[: num_top * num_scores]),
    )


def test_a_prompts_frame_comes_with_a_score_of_each_token_but_the_first() -> None:
    check_answer(CHUNK, scored(0, 3), SCORED, is_void=False)
    last = replace(CHUNK, sequence=1, first_position=4)  # two of the prompt, two of the answer
    check_answer(last, replace(scored(1, 2), num_tokens=8), SCORED, is_void=False)


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (scored(0, 0), "has 0 log-probabilities for 3 tokens of the prompt"),
        (scored(0, 4), "has 4 log-probabilities for 3 tokens of the prompt"),
        (scored(0, 3, num_top=1), "has not 2 top tokens for each token of the prompt"),
        (scored(0, 3, last_id=50), "answered top token 50, the vocabulary has 50"),
    ],
)
def test_a_prompts_frame_has_no_other_scores(result: Result, reason: str) -> None:
    with pytest.raises(SessionError, match=reason):
        check_answer(CHUNK, result, SCORED, is_void=False)


def test_scores_that_nobody_asked_for_are_refused() -> None:
    with pytest.raises(SessionError, match="for 0 tokens of the prompt"):
        check_answer(CHUNK, scored(0, 3), TERMS, is_void=False)


@pytest.mark.parametrize(
    ("top", "reason"),
    [
        ((), "has not 2 top tokens for each token"),
        ((TOP[:1],), "has not 2 top tokens for each token"),
        (((TOP[0], TopToken(50, -1.0)),), "answered top token 50"),
    ],
)
def test_each_token_comes_with_its_top_tokens(
    top: tuple[tuple[TopToken, ...], ...], reason: str
) -> None:
    step = replace(STEP, first_position=6)
    terms = replace(SCORED, prompt_top=None)
    good = replace(answer(1, 9, num_tokens=7), top=(TOP,))
    check_answer(step, good, terms, is_void=False)
    with pytest.raises(SessionError, match=reason):
        check_answer(step, replace(good, top=top), terms, is_void=False)


def test_every_token_says_how_surprising_it_was_where_that_was_asked() -> None:
    terms = AnswerTerms(max_tokens=100, with_entropies=True, num_prompt=6)
    good = replace(answer(0, num_tokens=4), prompt_entropies=b"abc")  # position 0 has none
    check_answer(CHUNK, good, terms, is_void=False)
    for wrong in (b"", b"abcd"):
        with pytest.raises(SessionError, match="not of 3"):
            check_answer(CHUNK, replace(good, prompt_entropies=wrong), terms, is_void=False)
    said = replace(answer(1, 9, num_tokens=5), entropies=b"a", prompt_entropies=b"ab")
    check_answer(STEP, said, terms, is_void=False)
    with pytest.raises(SessionError, match="does not say how surprising"):
        check_answer(STEP, replace(said, entropies=b""), terms, is_void=False)

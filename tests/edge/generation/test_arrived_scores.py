"""A prompt's log-probabilities, from the answers to its frames."""

from __future__ import annotations

from array import array

import pytest

from decoding.scores import TokenScore, TopToken
from edge.errors import PeerError
from edge.generation.arrived_scores import ArrivedScores
from protos.messages import Frame, Result


def frame(first: int, *ids: int) -> Frame:
    return Frame(sequence=0, first_position=first, token_ids=ids, hidden=b"")


def answer(*logprobs: float, top_ids: tuple[int, ...] = ()) -> Result:
    return Result(
        sequence=0,
        token_ids=(),
        num_tokens=0,
        prompt_logprobs=logprobs,
        prompt_top_ids=array("I", top_ids),
        prompt_top_logprobs=array("f", [-0.5] * len(top_ids)),
    )


def test_each_token_but_the_first_gets_the_score_of_its_frame() -> None:
    scores = ArrivedScores()
    scores.take(frame(0, 7, 8), answer(-1.0, top_ids=(3,)))
    scores.take(frame(2, 9, 5, 6), answer(-2.0, -3.0, top_ids=(4, 5)))  # 6 is of the answer
    assert scores.complete(4) == (
        TokenScore(8, -1.0, (TopToken(3, -0.5),)),
        TokenScore(9, -2.0, (TopToken(4, -0.5),)),
        TokenScore(5, -3.0, (TopToken(5, -0.5),)),
    )


def test_a_server_that_leaves_some_out_breaks_the_protocol() -> None:
    """As one would that claims to hold the prompt's first frames already."""
    scores = ArrivedScores()
    scores.take(frame(2, 9), answer(-2.0))
    with pytest.raises(PeerError, match="1 log-probabilities for a prompt of 3 tokens"):
        scores.complete(3)

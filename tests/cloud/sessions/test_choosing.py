"""Tokens that a device drew stand for the logits that they were drawn from."""

from __future__ import annotations

import numpy as np
import pytest

from cloud.engine.drawing import Drawing, Drawn
from cloud.engine.frame_work import FrameWork
from cloud.errors import BadFrameError
from cloud.sessions.choosing import chosen_tokens, is_finite
from decoding.params import SamplingParams
from decoding.sampler import sample
from protos.messages import Timings
from tests.cloud.sessions.test_session import begun, frame, session

VOCAB = 32
HOT = SamplingParams(temperature=1.3, top_p=0.9, seed=5)


@pytest.mark.parametrize("right", [0, 1, 3])
def test_drafts_are_accepted_as_far_as_the_drawn_tokens_go(right: int) -> None:
    logits = np.random.default_rng(right).standard_normal((4, VOCAB)).astype(np.float32)
    drawn = tuple(sample(row, HOT, position=9 + at).token_id for at, row in enumerate(logits))
    drafts = [*drawn[:right], *((token + 1) % VOCAB for token in drawn[right:3])]
    sent = frame(0, 8, 1, *drafts, drafts=3)
    work = FrameWork(frame=sent, rows=np.zeros((4, 2), dtype=np.float32), num_logits=4)
    kinds = [
        chosen_tokens(work, answer, HOT, position=9, seen=(), num_prompt=0)
        for answer in (logits, Drawn(drawn, True))
    ]
    assert kinds[0] == kinds[1]
    assert len(kinds[0]) == right + 1


def test_a_plain_session_lets_the_device_draw_at_the_place_of_its_first_token() -> None:
    target = session(temperature=0.5)
    work = begun(target, frame(0, 0, 1, 2, 3))
    assert work.drawing == Drawing(params=target._sampling, position=3)
    assert begun(session(repetition_penalty=1.2), frame(0, 0, 1, 2)).drawing is None
    assert begun(session(), frame(0, 0, 1, 2, want=False)).drawing is None


def test_a_session_goes_on_with_what_was_drawn() -> None:
    target = session()
    work = begun(target, frame(0, 0, 1, 2))
    target.lease.length = 2
    result = target.finish(work, Drawn((7,), True), Timings())
    assert result.token_ids == (7,)
    work = begun(target, frame(1, 2, 7, 8, 9, drafts=2))
    target.lease.length = 5
    result = target.finish(work, Drawn((8, 4, 6), True), Timings())
    assert result.token_ids == (8, 4)
    assert result.num_tokens == target.lease.length == 4
    assert target.tokens == [1, 2, 7, 8]


def test_rows_that_overflowed_end_the_session_whatever_was_drawn() -> None:
    target = session()
    work = begun(target, frame(0, 0, 1))
    with pytest.raises(BadFrameError, match="overflow"):
        target.finish(work, Drawn((-1,), False), Timings())
    assert not is_finite(np.array([[1.0, np.inf]], dtype=np.float32))

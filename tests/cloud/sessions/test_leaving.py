"""Tokens leave a server's session: what it keeps, what it refuses, and what it reports."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cloud.engine.frame_work import FrameWork
from cloud.errors import BadFrameError
from cloud.kv.pool import KvPool, KvShape
from cloud.sessions.leaving import LeavingTokens
from cloud.sessions.session import ServerSession
from decoding.params import SamplingParams
from decoding.sampler import score
from protos.entropy_bytes import entropies, entropy_bytes
from protos.kept_places import KeptPlaces, places_to_bytes
from protos.messages import Frame, Result, Timings
from tests.cloud.sessions.test_session import LADDER, VOCAB, frame, logits_for, run

POOL = KvPool(KvShape(num_layers=1, num_kv_heads=1, head_dim=2), limit_bytes=1 << 20)


def leaving(max_positions: int = 30, *, reports: bool = False, prompt: int = 4) -> ServerSession:
    return ServerSession(
        "s",
        lease=POOL.lease(split=0, max_tokens=8),
        ladder=LADDER,
        sampling=SamplingParams(),
        vocab_size=VOCAB,
        max_frame_tokens=16,
        prompt_tokens=prompt,
        leaving=LeavingTokens(max_positions, reports=reports),
    )


def keeping(sent: Frame, *places: int, of: int = 8) -> Frame:
    return replace(sent, kept=places_to_bytes(KeptPlaces(places, of)))


def test_the_named_tokens_stay_and_the_next_row_follows_them() -> None:
    it = leaving()
    run(it, frame(0, 0, 1, 2, 3, 4, 5, 6, 7, 8, want=False))
    result = run(it, keeping(frame(1, 3, 9), 0, 5, 7), 10)
    assert (it.tokens, it.lease.length, it.lease.num_left) == ([1, 6, 8, 9], 4, 5)
    assert (result.token_ids, result.num_tokens) == ((10,), 4)


def test_a_frame_that_comes_again_lets_nothing_leave_twice() -> None:
    it = leaving()
    run(it, frame(0, 0, *range(1, 9), want=False))
    sent = keeping(frame(1, 3, 9), 0, 5, 7)
    first = run(it, sent, 10)
    assert it.begin(sent) == first
    assert it.lease.num_left == 5


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (keeping(frame(1, 3, 9), 0, 5, 8, of=9), "keeps 3 of 9 tokens"),
        (keeping(frame(1, 2, 9), 0, 5, 7), "begins at 2"),
        (keeping(frame(1, 1, *range(9)), 0), "reaches position 10, the session reserved 8"),
    ],
)
def test_places_that_there_are_not_are_refused(bad: Frame, reason: str) -> None:
    it = leaving()
    run(it, frame(0, 0, *range(1, 9), want=False))
    with pytest.raises(BadFrameError, match=reason):
        it.begin(bad)


def test_rows_of_refused_guesses_do_not_count_as_tokens_that_left() -> None:
    """A replayed frame brings them again, and nothing but the next frame takes them back."""
    it = leaving()
    run(it, frame(0, 0, *range(1, 9), want=False))
    run(it, keeping(frame(1, 3, 9), 0, 2, 4, of=6), 10)
    assert (it.tokens, it.lease.num_left) == ([1, 3, 5, 9], 3)


def test_nothing_leaves_where_the_session_did_not_ask() -> None:
    it = leaving(0)
    run(it, frame(0, 0, 1, 2, 3, want=False))
    with pytest.raises(BadFrameError, match="no token may leave"):
        it.begin(keeping(frame(1, 1, 9), 0))


def test_positions_end_where_they_were_granted() -> None:
    it = leaving(12)
    run(it, frame(0, 0, *range(1, 9), want=False))
    run(it, keeping(frame(1, 1, 2, 3, 4, 5, want=False), 7))
    with pytest.raises(BadFrameError, match="reaches position 13"):
        it.begin(frame(2, 5, 9))


def test_a_roll_back_ends_where_tokens_left() -> None:
    it = leaving()
    run(it, frame(0, 0, *range(1, 9), want=False))
    run(it, keeping(frame(1, 3, 9), 0, 5, 7), 10)
    with pytest.raises(BadFrameError, match="the first 3"):
        it.begin(frame(2, 2, 9))


def test_penalties_know_how_much_of_the_prompt_is_left() -> None:
    """The prompt has 10 tokens: 8 came, 5 of them left, 2 are still to come."""
    it = leaving(prompt=10)
    run(it, frame(0, 0, *range(1, 9), want=False))
    run(it, keeping(frame(1, 3, 9, 10, want=False), 0, 5, 7))
    assert it._prompt_tokens == 5


def watched(it: ServerSession, sent: Frame, *best: int) -> Result:
    """As `run`, with every row's logits shown: row i's best token is i + 1 beyond the frame's."""
    work = it.begin(sent)
    assert isinstance(work, FrameWork)
    it.lease.length += work.left
    if work.watch is not None:
        work.watch(0, logits_for(*[token + 1 for token in sent.token_ids[: work.num_watched]]))
    return it.finish(work, logits_for(*best), Timings())


def test_every_token_of_prompt_and_answer_is_reported_across_a_round() -> None:
    it = leaving(reports=True, prompt=10)
    first = watched(it, frame(0, 0, 1, 2, 3, 9, 5, 6, 7, 8, want=False))
    logits = logits_for(4)[0]
    sure, other = score(logits, 4).logprob, score(logits, 9).logprob
    assert first.prompt_entropies == entropy_bytes(
        [sure, sure, other, score(logits_for(10)[0], 5).logprob, sure, sure, sure]
    )
    assert first.prompt_logprobs == ()
    second = watched(it, keeping(frame(1, 3, 9, 10), 0, 5, 7), 20)
    assert second.prompt_entropies == entropy_bytes([sure, sure])
    assert second.entropies == entropy_bytes([sure])
    third = watched(it, frame(2, 5, 20), 3)
    assert (third.prompt_entropies, len(third.entropies), third.logprobs) == (b"", 1, ())


def test_a_byte_holds_what_is_surprising() -> None:
    values = entropies(entropy_bytes([0.0, -1.0, -15.9, -40.0, -np.inf, 1e-4]))
    assert values == (0.0, 1.0, 15.875, 15.9375, 15.9375, 0.0)

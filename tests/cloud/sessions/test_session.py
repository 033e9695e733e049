"""One session's rules: sequence numbers, positions, memory of answers, drafts and penalties."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from cloud.engine.frame_work import FrameWork
from cloud.errors import BadFrameError
from cloud.kv.pool import KvPool, KvShape
from cloud.kv.prefix_cache import Beginning
from cloud.sessions.remembered_answers import REMEMBERED_RESULTS
from cloud.sessions.session import ServerSession
from codec.ladder import Ladder
from decoding.errors import GrammarError
from decoding.params import SamplingParams
from decoding.penalties import TokenMask
from protos.messages import Frame, Result, Timings

WIDTH, VOCAB = 8, 32
LADDER = Ladder.lossless(WIDTH)
POOL = KvPool(KvShape(num_layers=1, num_kv_heads=1, head_dim=2), limit_bytes=1 << 20)


def session(max_tokens: int = 40, **sampling: float) -> ServerSession:
    return ServerSession(
        "s",
        lease=POOL.lease(split=0, max_tokens=max_tokens),
        ladder=LADDER,
        sampling=SamplingParams(**sampling),  # type: ignore[arg-type]
        vocab_size=VOCAB,
        max_frame_tokens=16,
    )


def frame(sequence: int, first: int, *ids: int, drafts: int = 0, want: bool = True) -> Frame:
    rows = np.full((len(ids), WIDTH), sequence + 1, dtype=np.float32)
    hidden = LADDER.encode("lossless", rows, np.asarray(ids, dtype=np.int64))
    return Frame(
        sequence=sequence,
        first_position=first,
        token_ids=ids,
        hidden=hidden,
        num_drafts=drafts,
        want_token=want,
    )


def logits_for(*best: int) -> npt.NDArray[np.float32]:
    """One row a token, that token far ahead, the one after it second."""
    logits = np.zeros((len(best), VOCAB), dtype=np.float32)
    for row, token in zip(logits, best, strict=True):
        row[token], row[(token + 1) % VOCAB] = 10.0, 9.0
    return logits


def run(target: ServerSession, sent: Frame, *best: int) -> Result:
    """What the engine does between begin and finish: the rows enter the cache."""
    work = target.begin(sent)
    assert isinstance(work, FrameWork)
    assert target.lease.length == sent.first_position
    target.lease.length += work.left
    return target.finish(work, logits_for(*best), Timings())


def test_a_chunk_is_acknowledged_and_the_last_one_brings_a_token() -> None:
    it = session()
    assert run(it, frame(0, 0, 1, 2, 3, want=False)).token_ids == ()
    result = run(it, frame(1, 3, 4, 5), 9)
    assert (result.token_ids, result.num_tokens) == ((9,), 5)


def test_a_frame_of_a_shared_beginning_is_acknowledged_when_it_comes_again() -> None:
    """An edge whose stream broke in the prompt asks for every outstanding frame again, and finds
    the first ones here from another session with the same prompt."""
    first = POOL.lease(split=0, max_tokens=40, shareable_tokens=16)
    first.length = 16
    tokens = tuple(range(16))
    blocks = POOL.share(first, 16)
    it = ServerSession(
        "s",
        lease=POOL.lease(split=0, max_tokens=40, shared=blocks),
        ladder=LADDER,
        sampling=SamplingParams(),
        vocab_size=VOCAB,
        max_frame_tokens=16,
        beginning=Beginning(blocks=blocks, tokens=tokens, num_frames=1, chain=b"c"),
    )
    again = it.begin(frame(0, 0, *tokens, want=False))
    assert isinstance(again, Result)
    assert (again.sequence, again.token_ids, again.num_tokens) == (0, (), 16)
    assert run(it, frame(1, 16, 4, 5), 9).token_ids == (9,)


def test_accepted_drafts_stay_in_the_cache_and_refused_ones_leave() -> None:
    it = session()
    run(it, frame(0, 0, 1, 2), 7)
    result = run(it, frame(1, 2, 7, 8, 9, 10, drafts=3), 8, 9, 20, 21)
    assert (result.token_ids, result.num_tokens) == ((8, 9, 20), 5)
    assert it.tokens == [1, 2, 7, 8, 9]
    result = run(it, frame(2, 5, 20, 21, drafts=1), 21, 22)
    assert (result.token_ids, result.num_tokens) == ((21, 22), 7)


def ahead(sequence: int, first: int, *ids: int) -> Frame:
    return replace(frame(sequence, first, *ids, drafts=len(ids) - 1), ahead=True)


def test_a_frame_sent_ahead_runs_when_its_guess_was_right() -> None:
    it = session()
    run(it, frame(0, 0, 1, 2), 7)
    assert run(it, frame(1, 2, 7, 8, drafts=1), 8, 9).token_ids == (8, 9)
    assert run(it, ahead(2, 4, 9, 10), 10, 11).token_ids == (10, 11)
    assert it.tokens == [1, 2, 7, 8, 9, 10]


@pytest.mark.parametrize(
    "told",
    [(8, 20), (20, 21)],  # another last token; a refused draft, so that it stands elsewhere
)
def test_a_frame_sent_ahead_falls_with_its_guess_and_takes_those_behind_it_along(
    told: tuple[int, int],
) -> None:
    it = session()
    run(it, frame(0, 0, 1, 2), 7)
    answered = run(it, frame(1, 2, 7, 8, drafts=1), *told)
    kept = list(it.tokens)
    for sent in (ahead(2, 4, 9, 10), ahead(3, 6, 11)):
        fallen = it.begin(sent)
        assert isinstance(fallen, Result)
        assert (fallen.sequence, fallen.token_ids) == (sent.sequence, ())
        assert it.begin(sent) == fallen  # and when it comes again
    assert it.tokens == kept
    last = answered.token_ids[-1]
    assert run(it, frame(4, it.lease.length, last), 5).token_ids == (5,)


def test_nothing_stands_on_a_frame_that_wanted_no_token() -> None:
    it = session()
    run(it, frame(0, 0, 1, 2), 7)
    run(it, frame(1, 2, 7, want=False))
    fallen = it.begin(ahead(2, 3, 7))
    assert isinstance(fallen, Result)
    assert fallen.token_ids == ()


def test_a_lower_first_position_rolls_back() -> None:
    it = session()
    run(it, frame(0, 0, 1, 2, 3, 4, 5), 6)
    result = run(it, frame(1, 2, 9), 10)
    assert (result.num_tokens, it.tokens) == (3, [1, 2, 9])


def test_a_repeated_frame_gets_the_same_answer_and_changes_nothing() -> None:
    it = session()
    first, second = frame(0, 0, 1, 2), frame(1, 2, 7)
    answers = [run(it, first, 7), run(it, second, 8)]
    assert [it.begin(first), it.begin(second)] == answers
    assert (it.lease.length, it.tokens) == (3, [1, 2, 7])
    assert run(it, frame(2, 3, 8), 9).token_ids == (9,)


def test_a_repeated_number_with_other_content_is_refused() -> None:
    it = session()
    run(it, frame(0, 0, 1, 2), 7)
    with pytest.raises(BadFrameError, match="other content"):
        it.begin(frame(0, 0, 1, 3))


def test_an_answer_forgotten_long_ago_is_refused_clearly() -> None:
    it = session(max_tokens=200)
    for index in range(REMEMBERED_RESULTS + 1):
        run(it, frame(index, index, 3), 3)
    with pytest.raises(BadFrameError, match="too long ago"):
        it.begin(frame(0, 0, 3))
    assert isinstance(it.begin(frame(1, 1, 3)), Result)


def test_the_repetition_penalty_sees_prompt_output_and_accepted_drafts() -> None:
    it = session(repetition_penalty=2.0)
    assert run(it, frame(0, 0, 7), 7).token_ids == (8,)
    assert run(it, frame(1, 1, 8), 8).token_ids == (9,)
    # 8 rolled away is not "seen" any more.
    assert run(it, frame(2, 1, 5), 8).token_ids == (8,)


def test_logprobs_come_when_asked_for() -> None:
    result = run(session(logprobs=True), frame(0, 0, 1), 4)
    row = logits_for(4)[0].astype(np.float64)
    assert result.logprobs == pytest.approx((10 - np.log(np.exp(row).sum()),))
    assert run(session(), frame(0, 0, 1), 4).logprobs == ()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (frame(1, 0, 1), "frame 0 is missing"),
        (frame(0, 1, 1), "the cache ends at 0"),
        (frame(0, 0, *range(17)), "at most 16"),
        (frame(0, 0, 1, VOCAB), "vocabulary"),
        (frame(0, 0, 1, 2, drafts=1, want=False), "wants no token"),
        (replace(frame(0, 0, 1, 2), hidden=b"rubbish"), "frame 0"),
        (replace(frame(0, 0, 1, 2), token_ids=(1,)), "frame 0"),
    ],
)
def test_a_bad_frame_is_refused_and_leaves_the_session_as_it_was(bad: Frame, reason: str) -> None:
    it = session()
    with pytest.raises(BadFrameError, match=reason):
        it.begin(bad)
    assert (it.lease.length, it.tokens) == (0, [])
    assert run(it, frame(0, 0, 1), 2).token_ids == (2,)


def test_more_rows_than_reserved_are_refused() -> None:
    it = session(max_tokens=3)
    run(it, frame(0, 0, 1, 2), 5)
    with pytest.raises(BadFrameError, match="reserved 3"):
        it.begin(frame(1, 2, 5, 6))


def test_rows_that_overflow_the_model_end_the_session_not_the_sampler() -> None:
    it = session()
    work = it.begin(frame(0, 0, 1))
    assert isinstance(work, FrameWork)
    with pytest.raises(BadFrameError, match="overflow"):
        it.finish(work, np.full((1, VOCAB), np.nan, dtype=np.float32), Timings())


def test_a_frame_that_fell_ends_the_beginning_that_others_may_share() -> None:
    """An entry says how many frames it stands for; no chain names a frame that was not applied."""
    kept: list[int] = []
    it = session()
    it._keep = lambda tokens, num_frames, chain, rows: kept.append(num_frames)
    it.begin_chain(b"\0" * 32)
    run(it, frame(0, 0, 1, 2, want=False))
    assert isinstance(it.begin(replace(frame(1, 2, 9), ahead=True)), Result)
    run(it, frame(2, 2, 3, 4, want=False))
    assert kept == [1]


# Token frames: ids without rows.

DEEP = KvPool(KvShape(num_layers=4, num_kv_heads=1, head_dim=2), limit_bytes=1 << 20)


def token_session(split: int, token_rows: int) -> ServerSession:
    return ServerSession(
        "s",
        lease=DEEP.lease(split=split, max_tokens=40),
        ladder=LADDER,
        sampling=SamplingParams(),
        vocab_size=VOCAB,
        max_frame_tokens=16,
        embedding=lambda ids: np.asarray([[i] * WIDTH for i in ids], dtype=np.float32),
        below=DEEP.lease(split=0, stop=split, max_tokens=token_rows) if split else None,
    )


def tokens_only(sequence: int, first: int, *ids: int, want: bool = True, drafts: int = 0) -> Frame:
    return replace(frame(sequence, first, *ids, want=want, drafts=drafts), hidden=b"")


def begun(target: ServerSession, sent: Frame) -> FrameWork:
    work = target.begin(sent)
    assert isinstance(work, FrameWork)
    return work


def run_below(target: ServerSession, sent: Frame, *best: int) -> Result:
    """What the engine does with a token frame: both caches grow."""
    work = begun(target, sent)
    if work.below is not None:
        work.below.length += work.left
    target.lease.length += work.left
    return target.finish(work, logits_for(*best), Timings())


def test_a_token_frame_enters_layer_0_with_the_embeddings_rows() -> None:
    it = token_session(2, 16)
    work = begun(it, tokens_only(0, 0, 5, 6, want=False))
    assert work.rows[:, 0].tolist() == [5, 6]
    assert work.below is not None
    assert (work.below.split, work.below.stop, work.below.num_layers) == (0, 2, 2)
    it.close()


def test_the_layers_below_keep_nothing_once_the_prompt_is_there() -> None:
    before = DEEP.used_blocks
    it = token_session(2, 16)
    run_below(it, tokens_only(0, 0, 1, 2, want=False))
    assert it.token_rows == 16
    run_below(it, tokens_only(1, 2, 3), 9)
    assert it.token_rows == 0
    assert DEEP.used_blocks == before + it.lease.num_layers * 3
    it.close()
    assert DEEP.used_blocks == before


def test_rows_after_ids_end_what_may_come_as_ids() -> None:
    it = token_session(2, 16)
    run_below(it, tokens_only(0, 0, 1, 2, want=False))
    run(it, frame(1, 2, 3, want=False))
    with pytest.raises(BadFrameError, match="this session takes 0 so"):
        it.begin(tokens_only(2, 3, 4))
    it.close()


def test_ids_beyond_what_was_granted_are_refused() -> None:
    it = token_session(2, 4)
    with pytest.raises(BadFrameError, match="up to position 5; this session takes 4 so"):
        it.begin(tokens_only(0, 0, 1, 2, 3, 4, 5))
    it.close()


def test_ids_are_refused_where_nobody_asked_for_them() -> None:
    with pytest.raises(BadFrameError, match="this session takes 0 so"):
        session().begin(tokens_only(0, 0, 1))


def test_a_token_frame_may_begin_lower_again() -> None:
    it = token_session(2, 16)
    run_below(it, tokens_only(0, 0, 1, 2, 3, want=False))
    work = begun(it, tokens_only(1, 1, 7, 8, want=False))
    assert work.below is not None
    assert (work.below.length, it.lease.length, it.tokens) == (1, 1, [1, 7, 8])
    it.close()


def test_at_split_0_drafts_come_as_ids_too() -> None:
    it = token_session(0, 40)
    run_below(it, tokens_only(0, 0, 1, 2), 9)
    result = run_below(it, tokens_only(1, 2, 9, 10, drafts=1), 10, 11)
    assert result.token_ids == (10, 11)
    assert it.token_rows == 40
    it.close()


def masked_session(allowed: dict[tuple[int, ...], int], **sampling: float) -> ServerSession:
    """A session whose grammar allows one token after each answer; it names the drafts that fit."""

    def constrain(answer: Sequence[int], drafts: Sequence[int]) -> Future[list[TokenMask]]:
        masks, history = [], list(answer)
        for draft in (*drafts, -1):
            only = allowed[tuple(history)]
            masks.append(np.packbits(np.arange(VOCAB) == only, bitorder="little"))
            if draft != only:
                break
            history.append(draft)
        done: Future[list[TokenMask]] = Future()
        done.set_result(masks)
        return done

    return ServerSession(
        "s",
        lease=POOL.lease(split=0, max_tokens=40),
        ladder=LADDER,
        sampling=SamplingParams(**sampling),  # type: ignore[arg-type]
        vocab_size=VOCAB,
        max_frame_tokens=16,
        prompt_tokens=2,
        constrain=constrain,
    )


def test_a_grammar_masks_each_row_by_the_answer_without_the_prompt() -> None:
    it = masked_session({(): 20, (20,): 21, (20, 21): 22, (20, 21, 22): 23})
    assert run(it, frame(0, 0, 1, 2), 7).token_ids == (20,)
    result = run(it, frame(1, 2, 20, 21, 9, 10, drafts=3), 8, 9, 10, 11)
    assert result.token_ids == (21, 22)  # the second draft is forbidden, the third never asked for
    assert run(it, frame(2, 4, 22), 5).token_ids == (23,)


def test_a_chunk_that_wants_no_token_asks_for_no_mask() -> None:
    it = masked_session({(): 20})
    work = it.begin(frame(0, 0, 1, 2, want=False))
    assert isinstance(work, FrameWork)
    assert work.masks is None


def test_a_grammar_that_gives_up_ends_the_session_in_one_line() -> None:
    def constrain(answer: Sequence[int], drafts: Sequence[int]) -> Future[list[TokenMask]]:
        failed: Future[list[TokenMask]] = Future()
        failed.set_exception(GrammarError("the grammar takes too long"))
        return failed

    it = masked_session({})
    it._constrain = constrain
    with pytest.raises(BadFrameError, match="frame 0: the grammar takes too long"):
        run(it, frame(0, 0, 1, 2), 7)


def test_count_penalties_count_the_answer_and_not_the_prompt() -> None:
    it = masked_session({}, presence_penalty=2.0)
    it._constrain = None
    prompt = frame(0, 0, 9, 9)
    assert run(it, prompt, 9).token_ids == (9,)  # in the prompt alone: 10 to 9
    assert run(it, frame(1, 2, 9), 9).token_ids == (10,)  # 10 - 2 to 9


def test_top_tokens_come_with_every_accepted_draft() -> None:
    it = session(logprobs=True, top_logprobs=2)
    run(it, frame(0, 0, 1, 2), 7)
    result = run(it, frame(1, 2, 7, 8, 9, drafts=2), 8, 20, 21)
    assert [[top.token_id for top in tokens] for tokens in result.top] == [[8, 9], [20, 21]]
    assert result.top[0][0].logprob == result.logprobs[0]

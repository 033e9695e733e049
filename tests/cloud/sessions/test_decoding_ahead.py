"""Real sessions with decoding threads and without: same answers, same errors, nothing left."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cloud.engine.batch_entry import BatchEntry
from cloud.engine.frame_decoding import SHORT_ROWS, FrameDecoding
from cloud.engine.loop import EngineLoop
from cloud.engine.loop_commands import ActiveSession
from cloud.errors import BadFrameError, CloudError
from cloud.kv.pool import KvPool, KvShape
from cloud.sessions.session import ServerSession
from codec.frame import max_payload_bytes
from codec.ladder import Ladder
from decoding.params import SamplingParams
from protos.messages import Drafts, Frame, Result

WIDTH, VOCAB, MAX_TOKENS, MAX_ROWS, WAIT_S = 8, 32, 200, 24, 20.0
LADDER = Ladder.lossless(WIDTH)
SHAPE = KvShape(num_layers=1, num_kv_heads=1, head_dim=2)
Answer = tuple[object, ...]


class RowsEngine:
    """Each row's logits name a token that follows from the row's values."""

    def __init__(self) -> None:
        self.may_run = threading.Event()

    def forward(self, batch: Sequence[BatchEntry]) -> list[torch.Tensor]:
        assert self.may_run.wait(WAIT_S)
        answers = []
        for entry in batch:
            entry.lease.length += len(entry.rows)
            rows = entry.rows[len(entry.rows) - entry.num_logits :]
            best = (rows.abs().sum(dim=1) * 1000).long() % VOCAB
            answers.append(torch.nn.functional.one_hot(best, VOCAB).float())
        return answers


class Client:
    """One session, and what it was answered, without the times."""

    def __init__(self, pool: KvPool, loop: EngineLoop) -> None:
        self.session = ServerSession(
            "s",
            lease=pool.lease(split=0, max_tokens=MAX_TOKENS),
            ladder=LADDER,
            sampling=SamplingParams(),
            vocab_size=VOCAB,
            max_frame_tokens=MAX_ROWS,
        )
        self.answers: list[Answer] = []
        self.num_sent = self.num_released = 0
        self.active = ActiveSession(self.session, self._take)
        self._loop = loop

    def send(self, frame: Frame) -> None:
        self.num_sent += 1
        self._loop.submit(self.active, frame, self._release)

    def _take(self, answer: Result | Drafts | CloudError) -> None:
        if isinstance(answer, CloudError):
            self.answers.append((type(answer), str(answer)))
        elif isinstance(answer, Drafts):
            raise AssertionError("nobody drafts here")
        else:
            self.answers.append((answer.sequence, answer.token_ids, answer.num_tokens))

    def _release(self) -> None:
        self.num_released += 1


def made(rng: random.Random, sequence: int, first: int, ids: Sequence[int], **more: Any) -> Frame:
    values = np.random.default_rng(rng.randrange(1 << 30))
    rows = values.standard_normal((len(ids), WIDTH)).astype(np.float32)
    hidden = LADDER.encode("lossless", rows, np.asarray(ids, dtype=np.int64))
    return Frame(
        sequence=sequence, first_position=first, token_ids=tuple(ids), hidden=hidden, **more
    )


def bad(rng: random.Random, frame: Frame) -> Frame:
    """Like the frame, with a fault that a session must refuse."""
    damaged = bytearray(frame.hidden)
    damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return rng.choice(
        [
            replace(frame, hidden=bytes(damaged)),
            replace(frame, hidden=frame.hidden[:-1]),
            replace(frame, token_ids=(*frame.token_ids, 1)),
            replace(frame, token_ids=(VOCAB,) * len(frame.token_ids)),
            replace(frame, sequence=frame.sequence + 1),
            replace(frame, first_position=frame.first_position + 3),
            replace(frame, first_position=MAX_TOKENS - len(frame.token_ids) + 1),
            replace(frame, num_drafts=1, want_token=False),
        ]
    )


def script(seed: int) -> list[tuple[int, Frame]]:
    """Frames of three sessions, as they go out in one order; some on right and wrong guesses."""
    rng = random.Random(seed)
    loop = EngineLoop(engine := RowsEngine())
    engine.may_run.set()
    pool = KvPool(SHAPE, limit_bytes=1 << 20)
    clients = [Client(pool, loop) for _ in range(3)]
    sent: list[list[Frame]] = [[] for _ in clients]
    order: list[tuple[int, Frame]] = []
    loop.start()
    for _ in range(40):
        at = rng.randrange(len(clients))
        client = clients[at]
        session = client.session
        if client.active.is_dropped:
            continue
        first, sequence = session.lease.length, session.num_frames
        ids = [rng.randrange(VOCAB) for _ in range(rng.choice((1, 2, 12, MAX_ROWS)))]
        if first + len(ids) > MAX_TOKENS:
            continue
        last = session._last_token
        is_ahead = last is not None and rng.random() < 0.5
        if is_ahead and last is not None and rng.random() < 0.6:
            ids[0] = last  # the guess is right
        frame = made(rng, sequence, first, ids, ahead=is_ahead, want_token=rng.random() < 0.7)
        chance = rng.random()
        if chance < 0.05:
            frame = bad(rng, frame)
        elif chance < 0.2 and sent[at]:
            frame = rng.choice(sent[at][-4:])
        elif chance < 0.22 and sent[at]:
            frame = replace(rng.choice(sent[at]), first_position=0)
        sent[at].append(frame)
        order.append((at, frame))
        num_answers = len(client.answers)
        client.send(frame)
        # Its answer comes before anything else is sent.
        done = threading.Event()
        while len(client.answers) == num_answers and not client.active.is_dropped:
            done.wait(1e-4)
    loop.stop()
    return order


def played(
    order: Sequence[tuple[int, Frame]], decoding: FrameDecoding, closed: int | None = None
) -> list[list[Answer]]:
    """The answers of each session where nobody waits for an answer; `closed` is closed early."""
    loop = EngineLoop(engine := RowsEngine(), decoding=decoding)
    pool = KvPool(SHAPE, limit_bytes=1 << 20)
    clients = [Client(pool, loop) for _ in range(3)]
    loop.start()
    for index, (at, frame) in enumerate(order):
        clients[at].send(frame)
        if index == len(order) // 2:
            engine.may_run.set()
        if closed is not None and index == 2 * len(order) // 3:
            loop.close(clients[closed].active)
    engine.may_run.set()
    for client in clients:
        _wait_for(client)
    for client in clients:
        loop.close(client.active).result(timeout=WAIT_S)
    loop.stop()
    assert not any(thread.is_alive() for thread in decoding._threads)
    assert (pool.num_leases, pool.used_blocks, decoding.num_held) == (0, 0, 0)
    assert [client.num_released for client in clients] == [client.num_sent for client in clients]
    return [client.answers for client in clients]


def _wait_for(client: Client) -> None:
    pause = threading.Event()
    for _ in range(int(WAIT_S / 1e-3)):
        if client.active.is_dropped or len(client.answers) == client.num_sent:
            return
        pause.wait(1e-3)
    raise AssertionError("no answer came")


@pytest.mark.parametrize("seed", range(12))
def test_answers_and_errors_are_the_same_with_decoding_threads(seed: int) -> None:
    order = script(seed)
    plain = played(order, FrameDecoding())
    assert sum(map(len, plain)) > 5
    for num_threads, short_frames in ((1, True), (3, True), (2, False)):
        decoding = FrameDecoding(num_threads, short_frames=short_frames)
        assert played(order, decoding) == plain
    closed = seed % 3
    answers = played(order, FrameDecoding(2), closed)
    for at, (some, every) in enumerate(zip(answers, plain, strict=True)):
        assert some == (every[: len(some)] if at == closed else every)


def test_scripts_hold_what_they_are_meant_to_hold() -> None:
    """Right and wrong guesses, repeated frames and errors all occur."""
    guesses, errors, num_repeated = set[bool](), set[object](), 0
    for seed in range(12):
        order = script(seed)
        answers = played(order, FrameDecoding())
        by_sequence = [{answer[0]: answer for answer in one} for one in answers]
        errors.update(answer[0] for one in answers for answer in one if isinstance(answer[0], type))
        num_repeated += sum(map(len, answers)) - sum(map(len, by_sequence))
        for at, frame in order:
            if frame.ahead and frame.want_token and frame.sequence in by_sequence[at]:
                guesses.add(by_sequence[at][frame.sequence][1] != ())
    assert guesses == {True, False}
    assert errors == {BadFrameError}
    assert num_repeated > 3


@pytest.mark.parametrize(
    "changes",
    [
        {"token_ids": (1,) * (MAX_ROWS + 1)},
        {"token_ids": (VOCAB,) * 4},
        {"first_position": MAX_TOKENS - 3},
        {"want_token": False, "num_drafts": 1},
        {"sequence": 1},
        {"hidden": b""},
    ],
)
def test_a_frame_over_a_limit_is_never_decoded(
    changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []
    monkeypatch.setattr(Ladder, "decode", lambda self, frame, **_: decoded.append(frame))
    good = made(random.Random(0), 0, 0, [1, 2, 3, 4])
    client = Client(KvPool(SHAPE, limit_bytes=1 << 20), EngineLoop(RowsEngine()))
    assert client.session.decoder_of(good) is not None
    assert client.session.decoder_of(replace(good, **changes)) is None  # type: ignore[arg-type]
    with pytest.raises(BadFrameError):
        client.session.begin(replace(good, **changes))  # type: ignore[arg-type]
    assert decoded == []


def test_bytes_that_are_too_many_for_their_rows_are_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = 2 * SHORT_ROWS
    good = made(random.Random(0), 0, 0, [1] * rows)
    long = replace(good, hidden=good.hidden.ljust(max_payload_bytes(rows, WIDTH) + 1, b"x"))
    parsed: list[bytes] = []
    monkeypatch.setattr("codec.ladder.unpack_frame", lambda frame, seed: parsed.append(frame))
    loop = EngineLoop(engine := RowsEngine(), decoding=FrameDecoding(1))
    engine.may_run.set()
    client = Client(KvPool(SHAPE, limit_bytes=1 << 20), loop)
    loop.start()
    client.send(long)
    _wait_for(client)
    loop.close(client.active).result(timeout=WAIT_S)
    loop.stop()
    ((kind, text),) = client.answers
    assert kind is BadFrameError
    assert "too long for 16 rows" in str(text)
    assert parsed == []


def test_a_frame_that_was_answered_costs_no_second_decode() -> None:
    client = Client(KvPool(SHAPE, limit_bytes=1 << 20), EngineLoop(RowsEngine()))
    frame = made(random.Random(0), 0, 0, [1, 2])
    client.session.begin(frame)
    assert client.session.decoder_of(frame) is None

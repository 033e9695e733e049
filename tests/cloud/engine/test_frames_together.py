"""Short frames of many sessions that are decoded in one call: who goes with whom, and who waits."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from cloud.engine.batch_entry import FloatRows
from cloud.engine.frame_decoding import MOST_TOGETHER, FrameDecoding, RowDecoder
from cloud.engine.loop_commands import ActiveSession
from protos.messages import Frame
from tests.cloud.engine.test_frame_decoding import DecodingSession, Gate, busy_loop
from tests.cloud.engine.test_loop import WAIT_S, Listener, frame


class JoinedSession(DecodingSession):
    """Its frames go along with those of others in one call; `calls` has the sizes of these."""

    def __init__(self, calls: list[int], gate: Gate | None = None) -> None:
        super().__init__()
        self._calls, self._gate = calls, gate

    def decoder_of(self, frame: Frame) -> RowDecoder | None:
        plain = super().decoder_of(frame)
        return None if plain is None else Joined(plain, self._calls, self._gate)


class Joined:
    """See `JoinedSession`."""

    group = "all"

    def __init__(self, plain: RowDecoder, calls: list[int], gate: Gate | None) -> None:
        self._plain, self._calls, self._gate = plain, calls, gate

    def __call__(self) -> FloatRows:
        return self._plain()

    def together(self, decoders: Sequence[RowDecoder]) -> list[FloatRows | BaseException]:
        self._calls.append(len(decoders))
        if self._gate is not None:
            self._gate()
        return [decoder() for decoder in decoders]


def test_short_frames_of_many_sessions_go_together() -> None:
    """A thread takes what waits, at most 16 in a call; the rest goes into the next one."""
    calls: list[int] = []
    sessions = [JoinedSession(calls) for _ in range(MOST_TOGETHER + 3)]
    frames, decoding = [frame(0) for _ in sessions], FrameDecoding(2)
    for key, (session, sent) in enumerate(zip(sessions, frames, strict=True)):
        decoding.offer(key, session, sent)
    decoding.start()
    for _ in range(1000):
        if all(session.ahead for session in sessions):
            break
        threading.Event().wait(WAIT_S / 1000)
    while (last := decoding.take(MOST_TOGETHER + 2, frames[-1])) is None:
        threading.Event().wait(WAIT_S / 1000)
    assert last.rows().shape == (1, 2)
    for key, sent in enumerate(frames[:-1]):
        decoded = decoding.take(key, sent)
        assert decoded is not None
        assert decoded.rows().shape == (1, 2)
    decoding.stop()
    assert calls == [MOST_TOGETHER, 3]


@pytest.mark.parametrize("decoding", [FrameDecoding(), FrameDecoding(1, short_frames=False)])
def test_the_model_thread_decodes_what_waits_in_one_call(decoding: FrameDecoding) -> None:
    calls: list[int] = []
    sessions = [JoinedSession(calls) for _ in range(5)]
    heard = [Listener() for _ in sessions]
    with busy_loop(decoding) as (loop, step):
        for session, listener in zip(sessions, heard, strict=True):
            loop.submit(ActiveSession(session, listener), frame(0))
        step.opened.set()
        for listener in heard:
            assert getattr(listener.next(), "sequence", None) == 0
    assert calls == [5]
    assert all(session.begun_with[0] is not None for session in sessions)


def test_a_frame_that_a_group_kept_from_beginning_begins_when_the_group_ends() -> None:
    """The model thread decodes a group; what came meanwhile is a thread's as soon as that ends."""
    gate, calls, began = Gate(), list[int](), threading.Event()
    decoding = FrameDecoding(2)
    sessions, frames = [JoinedSession(calls, gate) for _ in range(2)], [frame(0), frame(0)]
    for key, (session, sent) in enumerate(zip(sessions, frames, strict=True)):
        decoding.offer(key, session, sent)
    asks = threading.Thread(target=decoding.is_ready, args=(0, frames[0], began.set))
    asks.start()  # before there are threads, so the asker decodes
    gate.reached()
    decoding.start()
    late = JoinedSession(calls)
    decoding.offer("late", late, frame(0))
    gate.opened.set()
    asks.join(WAIT_S)
    for _ in range(1000):
        if late.ahead:
            break
        threading.Event().wait(WAIT_S / 1000)
    decoding.stop()
    assert late.ahead == [0]


def test_a_frame_that_nobody_wants_any_more_is_released_when_its_call_ends() -> None:
    gate, released, calls = Gate(), list[int](), list[int]()
    sessions = [JoinedSession(calls, gate) for _ in range(3)]
    decoding = FrameDecoding(2)
    frames = [frame(0) for _ in sessions]
    for key, (session, sent) in enumerate(zip(sessions, frames, strict=True)):
        decoding.offer(key, session, sent)
    decoding.start()
    gate.reached()
    assert calls == [3]
    decoding.forget(1, frames[1], lambda: released.append(1))
    assert released == []  # the thread still has them
    gate.opened.set()
    decoding.stop()
    assert released == [1]

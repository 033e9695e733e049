"""Decoding beside the steps: what runs when, what is bounded, and what a session's end frees."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from cloud.engine.batch_entry import FloatRows
from cloud.engine.frame_decoding import SHORT_ROWS, Decoded, FrameDecoding, RowDecoder
from cloud.engine.frame_work import FrameWork
from cloud.engine.loop import EngineLoop
from cloud.engine.loop_commands import ActiveSession
from cloud.errors import BadFrameError, CloudError, EngineError, ServerFailedError
from protos.messages import Frame, Result
from tests.cloud.engine.test_loop import (
    WAIT_S,
    FakeEngine,
    FakeSession,
    Faulty,
    Listener,
    frame,
)

LONG = 4 * SHORT_ROWS


class Gate:
    """Makes what calls it wait; says when it is there."""

    def __init__(self, error: Exception | None = None) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.num_entered = 0
        self._error = error

    def __call__(self) -> None:
        self.num_entered += 1
        self.entered.set()
        assert self.opened.wait(WAIT_S)
        if self._error is not None:
            raise self._error

    def reached(self) -> None:
        assert self.entered.wait(WAIT_S)


class DecodingSession(FakeSession):
    """A session whose frames are decoded ahead; `gates` by sequence number stop a decode."""

    def __init__(self, gates: dict[int, Callable[[], None]] | None = None) -> None:
        super().__init__()
        self.gates = gates or {}
        self.ahead: list[int] = []  # frames that were decoded before they were begun
        self.begun_with: list[Decoded | None] = []

    def decoder_of(self, frame: Frame) -> RowDecoder | None:
        if frame.sequence != self.num_frames:
            return None

        def decode() -> FloatRows:
            self.ahead.append(frame.sequence)
            self.gates.get(frame.sequence, lambda: None)()
            return np.full((len(frame.token_ids), 2), frame.sequence, dtype=np.float32)

        return decode

    def begin(self, frame: Frame, decoded: Decoded | None = None) -> FrameWork | Result:
        if decoded is not None:
            decoded.rows()
        self.begun_with.append(decoded)
        return super().begin(frame, decoded)


@contextmanager
def busy_loop(
    decoding: FrameDecoding, engine: FakeEngine | None = None
) -> Iterator[tuple[EngineLoop, Gate]]:
    """A loop in a step that ends when the gate is opened; at the end no thread is left."""
    step, used = Gate(), engine or FakeEngine()
    used.on_forward = step
    loop = EngineLoop(used, decoding=decoding)
    loop.start()
    loop.submit(ActiveSession(FakeSession(), Listener()), frame(0))
    step.reached()
    try:
        yield loop, step
    finally:
        step.opened.set()
        loop.stop()
    assert not any(thread.is_alive() for thread in decoding._threads)
    assert decoding.num_held == 0


@pytest.mark.parametrize("num_rows", [1, LONG])
def test_a_slow_decode_does_not_delay_the_steps_of_other_sessions(num_rows: int) -> None:
    slow_decode = Gate()
    slow, other = DecodingSession({0: slow_decode}), DecodingSession()
    heard, heard_other = Listener(), Listener()
    with busy_loop(FrameDecoding(2)) as (loop, step):
        loop.submit(ActiveSession(slow, heard), frame(0, num_rows))
        slow_decode.reached()  # while the step runs
        active = ActiveSession(other, heard_other)
        loop.submit(active, frame(0))
        step.opened.set()
        for sequence in range(3):
            assert getattr(heard_other.next(), "sequence", None) == sequence
            loop.submit(active, frame(sequence + 1))
        assert heard.is_empty
        slow_decode.opened.set()
        assert getattr(heard.next(), "sequence", None) == 0
        heard_other.next()
    (decoded,) = slow.begun_with
    assert decoded is not None
    assert decoded.rows().shape == (num_rows, 2)


def test_no_more_than_the_next_frame_of_a_session_is_decoded_ahead() -> None:
    first = Gate()
    session, heard = DecodingSession({0: first}), Listener()
    with busy_loop(FrameDecoding(3)) as (loop, step):
        active = ActiveSession(session, heard)
        for sequence in range(4):
            loop.submit(active, frame(sequence, LONG))
        loop.submit(active, frame(0, LONG))  # the next one again
        first.reached()
        assert session.ahead == [0]
        session.repeated = {0}
        first.opened.set()
        step.opened.set()
        assert [getattr(heard.next(), "sequence", None) for _ in range(5)] == [0, 1, 2, 3, 0]
    # Each but the first was decoded while the one before it ran, or where it was begun.
    assert session.ahead == sorted(set(session.ahead))


@pytest.mark.parametrize("end", ["close", "fault"])
def test_a_session_that_ends_with_a_decode_on_its_way_frees_everything_once(end: str) -> None:
    gate, released = Gate(), list[int]()
    session, heard = DecodingSession({1: gate}), Listener()
    session.fails_to_finish = {0: BadFrameError("overflow")} if end == "fault" else {}
    done = threading.Event()

    def release_1() -> None:
        released.append(1)
        done.set()

    decoding, engine = FrameDecoding(1), FakeEngine()
    with busy_loop(decoding, engine) as (loop, step):
        engine.on_forward = gate.reached  # the step of frame 0 lasts until frame 1 is being decoded
        active = ActiveSession(session, heard)
        loop.submit(active, frame(0, LONG), lambda: released.append(0))
        loop.submit(active, frame(1, LONG), release_1)
        loop.submit(active, frame(2, LONG), lambda: released.append(2))
        step.opened.set()
        gate.reached()  # frame 1, once frame 0 is begun
        loop.close(active).result(timeout=WAIT_S)
        assert session.num_closed >= 1
        assert sorted(released) == [0, 2]  # a thread still has the bytes of frame 1
        assert decoding.num_held == 0
        gate.opened.set()
        assert done.wait(WAIT_S)
    assert sorted(released) == [0, 1, 2]
    assert active.is_dropped


def test_a_decode_that_nobody_wants_any_more_does_not_begin() -> None:
    holds_thread, released = Gate(), list[int]()
    holder, session = DecodingSession({0: holds_thread}), DecodingSession()
    with busy_loop(FrameDecoding(1)) as (loop, step):
        loop.submit(ActiveSession(holder, Listener()), frame(0, LONG))
        holds_thread.reached()
        active = ActiveSession(session, Listener())
        loop.submit(active, frame(0, LONG), lambda: released.append(0))
        step.opened.set()
        loop.close(active).result(timeout=WAIT_S)
        assert released == [0]
        holds_thread.opened.set()
    assert session.ahead == []


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (BadFrameError("frame 0: damaged"), BadFrameError, "frame 0: damaged"),
        (MemoryError("no room"), EngineError, "taking in a frame failed (no room)"),
    ],
)
def test_a_decode_that_fails_ends_its_session_alone(
    error: Exception, kind: type[CloudError], text: str
) -> None:
    fails = Gate(error)
    fails.opened.set()
    bad, good = DecodingSession({0: fails}), DecodingSession()
    heard_bad, heard_good = Listener(), Listener()
    with busy_loop(FrameDecoding(1)) as (loop, step):
        loop.submit(ActiveSession(bad, heard_bad), frame(0, LONG))
        loop.submit(ActiveSession(good, heard_good), frame(0, LONG))
        step.opened.set()
        answer = heard_bad.next()
        assert (type(answer), str(answer)) == (kind, text)
        assert isinstance(heard_good.next(), Result)
    assert (bad.num_closed, good.num_closed) == (1, 0)


def test_long_frames_leave_a_thread_to_short_ones_and_short_ones_go_in_turn() -> None:
    gates = [Gate() for _ in range(4)]
    sessions = [DecodingSession({0: gate}) for gate in gates]
    with busy_loop(FrameDecoding(2)) as (loop, _):
        for session, num_rows in zip(sessions, (LONG, LONG, 1, 1), strict=True):
            loop.submit(ActiveSession(session, Listener()), frame(0, num_rows))
        gates[0].reached()
        gates[2].reached()
        assert [gate.num_entered for gate in gates] == [1, 0, 1, 0]
        gates[0].opened.set()
        gates[1].reached()
        gates[2].opened.set()
        gates[3].reached()
        for gate in gates:
            gate.opened.set()


def test_a_short_frame_that_a_batch_waits_for_goes_before_a_long_one() -> None:
    first, order = Gate(), list[str]()
    decoding, ready = FrameDecoding(1), threading.Event()
    holder = DecodingSession({0: first})
    long = DecodingSession({0: lambda: order.append("long")})
    short = DecodingSession({0: lambda: order.append("short")})
    decoding.start()
    decoding.offer("holder", holder, frame(0))
    first.reached()
    decoding.offer("long", long, frame(0, LONG))
    sent = frame(0)
    decoding.offer("short", short, sent)
    assert not decoding.is_ready("short", sent, ready.set)
    first.opened.set()
    assert ready.wait(WAIT_S)
    decoding.stop()
    assert order[0] == "short"


def test_the_model_thread_decodes_short_frames_that_no_thread_has_begun() -> None:
    holds_thread = Gate()
    holder, session, heard = DecodingSession({0: holds_thread}), DecodingSession(), Listener()
    with busy_loop(FrameDecoding(1)) as (loop, step):
        loop.submit(ActiveSession(holder, Listener()), frame(0, LONG))
        holds_thread.reached()
        loop.submit(ActiveSession(session, heard), frame(0))
        step.opened.set()
        assert isinstance(heard.next(), Result)
        holds_thread.opened.set()
    assert (session.ahead, session.begun_with) == ([], [None])


def test_short_frames_stay_with_the_model_thread_where_the_loop_is_idle_or_they_are_told_to() -> (
    None
):
    decoding = FrameDecoding(1)
    session = DecodingSession()
    decoding.offer("s", session, frame(0), idle=True)
    assert decoding.num_held == 0
    decoding.offer("s", session, frame(0), idle=False)
    assert decoding.num_held == 1
    own = FrameDecoding(1, short_frames=False)
    own.offer("s", session, frame(0))
    assert own.num_held == 0
    own.offer("s", session, frame(0, LONG), idle=True)
    assert own.num_held == 1
    for unused in (FrameDecoding(), FrameDecoding(0)):
        unused.offer("s", session, frame(0, LONG))
        assert unused.num_held == 0


def test_the_seconds_of_a_decode_are_the_frames_codec_time_wherever_it_ran() -> None:
    """The decoding threads' clock moves by seven seconds a look; the loop's stands still."""
    now_s = iter(range(0, 70_000, 7))
    session, heard = DecodingSession(), Listener()
    decoding = FrameDecoding(1, clock=lambda: float(next(now_s)))
    loop = EngineLoop(FakeEngine(), decoding=decoding, clock=lambda: 0.0)
    loop.start()
    loop.submit(ActiveSession(session, heard), frame(0, LONG))
    heard.next()
    loop.stop()
    assert [timings.codec_s for timings in session.timings] == [7.0]


def test_a_wait_for_short_frames_ends_with_the_last_of_them() -> None:
    gate = Gate()
    session, decoding, ready = DecodingSession({0: gate}), FrameDecoding(1), threading.Event()
    sent = frame(0)
    decoding.start()
    decoding.offer("s", session, sent)
    gate.reached()
    assert not decoding.is_ready("s", sent, ready.set)
    waiting = threading.Thread(target=decoding.wait_for_short, args=(WAIT_S,))
    waiting.start()
    assert not ready.is_set()
    gate.opened.set()
    waiting.join(WAIT_S)
    assert not waiting.is_alive()
    assert ready.is_set()
    assert decoding.is_ready("s", sent, ready.clear)
    assert decoding.take("s", sent) is not None
    decoding.wait_for_short(WAIT_S)  # nobody waits for a frame: no wait
    decoding.stop()


def test_a_thread_that_dies_tells_a_session_whose_frame_is_being_decoded() -> None:
    gate, released = Gate(), list[int]()
    session, heard = DecodingSession({0: gate}), Listener()
    decoding = FrameDecoding(1)
    loop = EngineLoop(FakeEngine(), observer=Faulty(), decoding=decoding)
    loop.start()
    loop.submit(ActiveSession(session, heard), frame(0, LONG), lambda: released.append(0))
    gate.reached()
    loop.submit(ActiveSession(FakeSession(), Listener()), frame(0))  # its step ends the thread
    assert isinstance(heard.next(), ServerFailedError)
    assert session.num_closed == 1
    assert released == []
    gate.opened.set()
    loop.stop()
    for thread in decoding._threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert released == [0]

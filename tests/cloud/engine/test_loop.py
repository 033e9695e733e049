"""The model thread's rules with a made-up engine: order, batches, faults, and what it frees."""

from __future__ import annotations

import functools
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from cloud.engine.batch_entry import BatchEntry
from cloud.engine.frame_decoding import Decoded, RowDecoder
from cloud.engine.frame_work import FrameWork
from cloud.engine.launches import Answered
from cloud.engine.loop import EngineLoop
from cloud.engine.loop_commands import ActiveSession
from cloud.errors import BadFrameError, CloudError, EngineError, ServerFailedError
from decoding.penalties import TokenMask
from optimizer.policy.batching import Scheduler
from protos.messages import Drafts, Frame, Result, Timings

WAIT_S = 20.0


class FakeSession:
    """Answers every frame with its number. `fails` maps a frame's number to what begin raises."""

    def __init__(self, *, fails: dict[int, Exception] | None = None) -> None:
        self.lease: Any = object()
        self.fails = fails or {}
        self.fails_to_finish: dict[int, Exception] = {}
        self.repeated: set[int] = set()
        self.num_frames = 0
        self.token_rows = 0
        self.max_positions = 0
        self.recalls = False
        self.num_closed = 0
        self.timings: list[Timings] = []
        self.masks: Future[list[TokenMask]] | None = None  # what its frames wait for
        self.watched: list[int] = []
        self.num_watched = 0

    def decoder_of(self, frame: Frame) -> RowDecoder | None:
        return None

    def begin(self, frame: Frame, decoded: Decoded | None = None) -> FrameWork | Result:
        if frame.sequence in self.fails:
            raise self.fails[frame.sequence]
        self.num_frames += 1
        if frame.sequence in self.repeated:
            return Result(sequence=frame.sequence, token_ids=(), num_tokens=0)
        rows = np.full((len(frame.token_ids), 2), frame.sequence, dtype=np.float32)
        return FrameWork(
            frame=frame,
            rows=rows,
            num_logits=1 if frame.want_token else 0,
            masks=self.masks,
            num_watched=self.num_watched,
            watch=lambda first, logits: self.watched.append(first),
        )

    def finish(
        self,
        work: FrameWork,
        answer: Answered,
        timings: Timings,
        elapsed_s: Callable[[], float] = lambda: 0.0,
    ) -> Result:
        if work.frame.sequence in self.fails_to_finish:
            raise self.fails_to_finish[work.frame.sequence]
        assert isinstance(answer, np.ndarray)
        assert answer.shape[0] == work.num_logits
        self.timings.append(timings)
        return Result(sequence=work.frame.sequence, token_ids=(1,), num_tokens=1)

    def close(self) -> None:
        self.num_closed += 1


class FakeEngine:
    """Notes each batch as the (lease, rows) of its entries; waits for `go` where one is given."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[object, int]]] = []
        self.fails = False
        self.on_forward: Callable[[], None] = lambda: None

    def forward(self, batch: Sequence[BatchEntry]) -> list[torch.Tensor]:
        self.batches.append([(entry.lease, entry.rows.shape[0]) for entry in batch])
        self.on_forward()
        if self.fails:
            raise RuntimeError("out of memory")
        for entry in batch:
            if entry.watch is not None:
                entry.watch(0, np.zeros((entry.num_watched, 4), dtype=np.float32))
        return [torch.zeros(entry.num_logits, 4) for entry in batch]


class Listener:
    """What a session was answered."""

    def __init__(self) -> None:
        self._answers: queue.SimpleQueue[Result | Drafts | CloudError] = queue.SimpleQueue()

    def __call__(self, answer: Result | Drafts | CloudError) -> None:
        self._answers.put(answer)

    def next(self) -> Result | Drafts | CloudError:
        return self._answers.get(timeout=WAIT_S)

    @property
    def is_empty(self) -> bool:
        return self._answers.empty()


@contextmanager
def running(engine: FakeEngine, **changes: Any) -> Iterator[EngineLoop]:
    loop = EngineLoop(engine, **changes)
    loop.start()
    try:
        yield loop
    finally:
        loop.stop()


def frame(sequence: int, num_rows: int = 1, *, want: bool = True) -> Frame:
    return Frame(
        sequence=sequence,
        first_position=0,
        token_ids=tuple(range(num_rows)),
        hidden=b"",
        want_token=want,
    )


def submit_before_start(
    engine: FakeEngine, work: Sequence[tuple[ActiveSession, Frame]], **changes: Any
) -> EngineLoop:
    """A loop whose frames all lie there before it takes the first."""
    loop = EngineLoop(engine, **changes)
    for active, sent in work:
        loop.submit(active, sent)
    return loop


def test_frames_of_one_session_are_answered_in_their_order() -> None:
    listener = Listener()
    active = ActiveSession(FakeSession(), listener)
    with running(FakeEngine()) as loop:
        for sequence in range(5):
            loop.submit(active, frame(sequence))
        answers = [listener.next() for _ in range(5)]
    assert [getattr(answer, "sequence", answer) for answer in answers] == list(range(5))


def test_sessions_that_wait_together_share_a_batch_and_one_frame_each() -> None:
    engine, listener = FakeEngine(), Listener()
    sessions = [FakeSession() for _ in range(3)]
    actives = [ActiveSession(session, listener) for session in sessions]
    work = [(active, frame(sequence)) for sequence in range(2) for active in actives]
    loop = submit_before_start(engine, work)
    loop.start()
    for _ in work:
        listener.next()
    loop.stop()
    together = [(session.lease, 1) for session in sessions]
    assert engine.batches == [together, together]
    assert all(
        (timings.batch_sessions, timings.batch_rows) == (3, 3)
        for session in sessions
        for timings in session.timings
    )


def test_a_long_frame_runs_in_pieces_and_only_the_last_has_logits() -> None:
    engine, listener = FakeEngine(), Listener()
    session = FakeSession()
    limits = Scheduler(max_rows=4, max_sessions=4, min_prefill_rows=1)
    loop = submit_before_start(
        engine, [(ActiveSession(session, listener), frame(0, 10))], scheduler=limits
    )
    loop.start()
    assert isinstance(listener.next(), Result)
    loop.stop()
    assert [rows for batch in engine.batches for _, rows in batch] == [4, 4, 2]


def test_a_repeated_frame_is_answered_without_the_engine() -> None:
    engine, listener = FakeEngine(), Listener()
    session = FakeSession()
    session.repeated = {0}
    with running(engine) as loop:
        loop.submit(ActiveSession(session, listener), frame(0))
        answer = listener.next()
    assert isinstance(answer, Result)
    assert engine.batches == []


@pytest.mark.parametrize(
    ("error", "kind"),
    [(BadFrameError("a hole"), BadFrameError), (MemoryError("no room"), EngineError)],
)
@pytest.mark.parametrize("where", ["begin", "finish"])
def test_a_fault_in_one_session_ends_it_alone(
    error: Exception, kind: type[CloudError], where: str
) -> None:
    bad, good = FakeSession(), FakeSession()
    if where == "begin":
        bad.fails = {0: error}
    else:
        bad.fails_to_finish = {0: error}
    heard_bad, heard_good = Listener(), Listener()
    active_bad = ActiveSession(bad, heard_bad)
    with running(FakeEngine()) as loop:
        loop.submit(active_bad, frame(0))
        loop.submit(active_bad, frame(1))
        loop.submit(ActiveSession(good, heard_good), frame(0))
        assert type(heard_bad.next()) is kind
        assert isinstance(heard_good.next(), Result)
    assert active_bad.is_dropped
    assert bad.num_closed == 1
    assert heard_bad.is_empty  # its other frame was forgotten
    assert good.num_closed == 0


def test_a_step_that_fails_ends_its_sessions_and_the_thread_goes_on() -> None:
    engine, listener = FakeEngine(), Listener()
    engine.fails = True
    first = ActiveSession(FakeSession(), listener)
    with running(engine) as loop:
        loop.submit(first, frame(0))
        answer = listener.next()
        assert isinstance(answer, EngineError)
        assert "out of memory" in str(answer)
        engine.fails = False
        loop.submit(ActiveSession(FakeSession(), listener), frame(0))
        assert isinstance(listener.next(), Result)
    assert first.is_dropped


def test_a_session_is_freed_between_batches_and_what_it_sent_is_forgotten() -> None:
    engine, listener = FakeEngine(), Listener()
    session = FakeSession()
    active = ActiveSession(session, listener)
    in_step, go = queue.SimpleQueue[None](), queue.SimpleQueue[None]()

    def wait() -> None:
        in_step.put(None)
        go.get(timeout=WAIT_S)

    engine.on_forward = wait
    with running(engine) as loop:
        loop.submit(active, frame(0))
        loop.submit(active, frame(1))
        in_step.get(timeout=WAIT_S)
        freed = loop.close(active)
        assert not freed.done()
        assert session.num_closed == 0
        go.put(None)
        freed.result(timeout=WAIT_S)
        assert session.num_closed == 1
        assert active.is_dropped
        loop.submit(active, frame(2))
        loop.close(active).result(timeout=WAIT_S)
    assert len(engine.batches) == 1


def test_a_cancelled_close_still_frees() -> None:
    session = FakeSession()
    active = ActiveSession(session, Listener())
    loop = EngineLoop(FakeEngine())
    assert loop.close(active).cancel()
    loop.start()
    loop.close(active).result(timeout=WAIT_S)
    loop.stop()
    assert active.is_dropped


def test_answers_follow_a_session_to_another_stream() -> None:
    old, new = Listener(), Listener()
    active = ActiveSession(FakeSession(), old)
    with running(FakeEngine()) as loop:
        loop.submit(active, frame(0))
        old.next()
        active.answer_to(new)
        loop.submit(active, frame(1))
        assert isinstance(new.next(), Result)
    assert old.is_empty


def test_waits_and_steps_are_observed_and_times_add_up() -> None:
    """One second passes with every look at the clock."""
    now_s = iter(range(10_000))

    class Observer:
        def __init__(self) -> None:
            self.waits_s: list[float] = []
            self.steps: list[tuple[float, int, int]] = []
            self.answered: list[int] = []

        def frame_waited(self, wait_s: float) -> None:
            self.waits_s.append(wait_s)

        def step_ran(self, duration_s: float, *, num_sessions: int, num_rows: int) -> None:
            self.steps.append((duration_s, num_sessions, num_rows))

        def frame_answered(self, frame: Frame, timings: Timings) -> None:
            self.answered.append(frame.sequence)

    observer, session, listener = Observer(), FakeSession(), Listener()
    limits = Scheduler(max_rows=4, max_sessions=4, min_prefill_rows=1)
    loop = submit_before_start(
        FakeEngine(),
        [(ActiveSession(session, listener), frame(0, 6))],
        scheduler=limits,
        observer=observer,
        clock=lambda: float(next(now_s)),
    )
    loop.start()
    listener.next()
    loop.stop()
    # Received at 0, taken in from 1 to 2, two steps of one second from 3 on.
    assert observer.waits_s == [2.0]
    assert observer.steps == [(1.0, 1, 4), (1.0, 1, 2)]
    assert observer.answered == [0]
    (timings,) = session.timings
    assert (timings.codec_s, timings.queue_s, timings.compute_s) == (1.0, 2.0, 2.0)


class Faulty:
    """An observer that fails: nothing in the loop guards against that."""

    def frame_waited(self, wait_s: float) -> None:
        raise ZeroDivisionError("of no kind that was foreseen")

    def step_ran(self, duration_s: float, *, num_sessions: int, num_rows: int) -> None:
        raise AssertionError("no step gets that far")

    def frame_answered(self, frame: Frame, timings: Timings) -> None:
        raise AssertionError("no frame gets that far")


def test_a_thread_that_dies_says_so_tells_who_waits_and_still_frees() -> None:
    heard, session = Listener(), FakeSession()
    active = ActiveSession(session, heard)
    idle = ActiveSession(FakeSession(), Listener())
    released: list[int] = []
    loop = EngineLoop(FakeEngine(), observer=Faulty())
    loop.submit(active, frame(0), lambda: released.append(0))
    loop.submit(active, frame(1), lambda: released.append(1))
    assert loop.trouble(60.0) is None
    loop.start()
    assert isinstance(heard.next(), ServerFailedError)
    assert "ZeroDivisionError" in (loop.trouble(60.0) or "")
    assert sorted(released) == [0, 1]
    assert session.num_closed == 1
    loop.close(idle).result(timeout=WAIT_S)
    assert idle.is_dropped
    late = Listener()
    loop.submit(ActiveSession(FakeSession(), late), frame(0), lambda: released.append(2))
    assert isinstance(late.next(), ServerFailedError)
    assert released[2:] == [2]
    loop.stop()


def test_a_step_that_hangs_is_trouble_and_a_loop_that_waits_is_none() -> None:
    engine, go = FakeEngine(), queue.SimpleQueue[None]()
    in_step = queue.SimpleQueue[None]()

    def hang() -> None:
        in_step.put(None)
        go.get(timeout=WAIT_S)

    engine.on_forward = hang
    listener = Listener()
    with running(engine) as loop:
        assert loop.trouble(0.0) is None
        loop.submit(ActiveSession(FakeSession(), listener), frame(0))
        in_step.get(timeout=WAIT_S)
        assert loop.trouble(60.0) is None
        assert loop.trouble(0.0) == "a step of the model has run for more than 0 s"
        go.put(None)
        listener.next()


@pytest.mark.parametrize("end", ["answer", "fault", "close", "repeat"])
def test_every_frame_is_released_once_however_it_ends(end: str) -> None:
    session, listener = FakeSession(), Listener()
    released: list[int] = []
    active = ActiveSession(session, listener)
    if end == "fault":
        session.fails = {0: BadFrameError("a hole")}
    if end == "repeat":
        session.repeated = {0, 1}
    with running(FakeEngine()) as loop:
        if end == "close":
            loop.close(active).result(timeout=WAIT_S)
        for sequence in range(2):
            loop.submit(active, frame(sequence), functools.partial(released.append, sequence))
        if end != "close":
            listener.next()
        loop.close(active).result(timeout=WAIT_S)
    assert sorted(released) == [0, 1]


def test_a_grammar_that_takes_its_time_stops_nobody_else() -> None:
    """Its frame's rows run in the batch; only its answer waits for the masks."""
    slow, other = FakeSession(), FakeSession()
    masks = slow.masks = Future[list[TokenMask]]()
    heard, heard_other = Listener(), Listener()
    with running(FakeEngine()) as loop:
        waiting = ActiveSession(slow, heard)
        loop.submit(waiting, frame(0))
        loop.submit(waiting, frame(1))
        active = ActiveSession(other, heard_other)
        for sequence in range(5):
            loop.submit(active, frame(sequence))
            assert getattr(heard_other.next(), "sequence", None) == sequence
        assert heard.is_empty
        assert slow.num_frames == 1  # the next one waits for its answer
        masks.set_result([])
        assert [getattr(heard.next(), "sequence", None) for _ in range(2)] == [0, 1]


def test_a_session_that_waits_for_masks_can_be_closed() -> None:
    session, heard = FakeSession(), Listener()
    masks = session.masks = Future[list[TokenMask]]()
    released: list[int] = []
    with running(FakeEngine()) as loop:
        active = ActiveSession(session, heard)
        loop.submit(active, frame(0), lambda: released.append(0))
        loop.close(active).result(timeout=WAIT_S)
        masks.set_result([])
        other = Listener()
        loop.submit(ActiveSession(FakeSession(), other), frame(0))
        other.next()
    assert heard.is_empty
    assert (session.num_closed, released) == (1, [0])


def test_rows_whose_logits_are_watched_come_in_small_parts_with_their_place() -> None:
    session, engine, heard = FakeSession(), FakeEngine(), Listener()
    session.num_watched = 150
    with running(engine) as loop:
        loop.submit(ActiveSession(session, heard), frame(0, 200))
        heard.next()
    assert [num_rows for batch in engine.batches for _, num_rows in batch] == [64, 64, 64, 8]
    assert session.watched == [0, 64, 128]

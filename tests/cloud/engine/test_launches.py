"""While a step runs on a device the model thread takes in frames, and nothing else."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

import torch

from cloud.engine.batch_entry import BatchEntry
from cloud.engine.frame_decoding import Decoded
from cloud.engine.frame_work import FrameWork
from cloud.engine.launches import Answered, DoneLaunch, launch
from cloud.engine.loop import EngineLoop
from cloud.engine.loop_commands import ActiveSession
from protos.messages import Frame, Result
from tests.cloud.engine.test_loop import WAIT_S, FakeEngine, FakeSession, Listener, frame


class DeviceEngine:
    """A step is answered when the test says so."""

    def __init__(self) -> None:
        self.launched: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.asked = threading.Event()  # the thread waits for the device
        self.go = threading.Event()

    def launch(self, batch: Sequence[BatchEntry]) -> DeviceLaunch:
        self.launched.put(len(batch))
        return DeviceLaunch(self, [torch.zeros(entry.num_logits, 4).numpy() for entry in batch])


class DeviceLaunch:
    is_done = False

    def __init__(self, engine: DeviceEngine, answers: list[Answered]) -> None:
        self._engine = engine
        self._answers = answers

    def result(self) -> list[Answered]:
        self._engine.asked.set()
        assert self._engine.go.wait(WAIT_S)
        return self._answers


class CountingSession(FakeSession):
    """Says when a frame was begun."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()

    def begin(self, frame: Frame, decoded: Decoded | None = None) -> FrameWork | Result:
        self.begun.set()
        return super().begin(frame, decoded)


def test_a_session_is_answered_and_freed_once_its_step_has_ended() -> None:
    engine = DeviceEngine()
    loop = EngineLoop(engine)
    first, second = FakeSession(), FakeSession()
    heard, heard_second = Listener(), Listener()
    active = ActiveSession(first, heard)
    loop.submit(active, frame(0))
    loop.start()
    assert engine.launched.get(timeout=WAIT_S) == 1
    assert engine.asked.wait(WAIT_S)
    loop.submit(ActiveSession(second, heard_second), frame(0))
    freed = loop.close(active)
    assert first.num_closed == 0
    engine.go.set()
    assert getattr(heard.next(), "sequence", None) == 0
    assert freed.result(WAIT_S) is None
    assert first.num_closed == 1
    assert getattr(heard_second.next(), "sequence", None) == 0
    loop.stop()


def test_a_close_waits_for_the_step_that_uses_its_blocks_and_frames_behind_it_wait_too() -> None:
    engine = DeviceEngine()
    loop = EngineLoop(engine)
    session, late = FakeSession(), CountingSession()
    heard = Listener()
    active = ActiveSession(session, heard)
    loop.submit(active, frame(0))
    # Commands that are there when the step was started: a frame of another session, then a close.
    loop._take_commands()
    loop.submit(ActiveSession(late, Listener()), frame(0))
    freed = loop.close(active)
    behind = CountingSession()
    loop.submit(ActiveSession(behind, Listener()), frame(0))
    loop._take_in_meanwhile()
    assert late.begun.is_set()
    assert not behind.begun.is_set()
    assert session.num_closed == 0
    assert not freed.done()
    loop._take_commands()
    assert session.num_closed == 1
    assert freed.done()
    assert behind.begun.is_set()


def test_an_engine_that_runs_at_once_has_finished_when_it_was_launched() -> None:
    lease, rows = object(), torch.zeros(2, 3)
    entry = BatchEntry(lease=lease, rows=rows, num_logits=2)  # type: ignore[arg-type]
    started = launch(FakeEngine(), [entry])
    assert isinstance(started, DoneLaunch)
    assert started.is_done
    (answer,) = started.result()
    assert getattr(answer, "shape", None) == (2, 4)

"""What a server's steps took becomes lines of figures, and never more than a warning."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cloud.engine.batch_entry import BatchEntry
from cloud.engine.loop_observer import NoObserver
from cloud.engine.measured_engine import AlikeBatch, MeasuredEngine, alike
from cloud.server.serving_log import ServingLog
from codec.ladder import Ladder
from optimizer.measured.log import MeasurementLog, read_measurements
from optimizer.measured.record import MeasuredServing
from protos.messages import Frame, Timings
from tests.optimizer.measured import hours


class Watch:
    """A clock that is moved by hand."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def entry(rows: int, *, length: int, split: int = 10, **more: Any) -> BatchEntry:
    lease: Any = SimpleNamespace(split=split, length=length)
    return BatchEntry(lease=lease, rows=torch.zeros(rows, 4), num_logits=1, **more)


@pytest.fixture
def log(tmp_path: Path) -> tuple[ServingLog, Watch, Path]:
    path, clock = tmp_path / "measured.jsonl", Watch()
    found = ServingLog(
        MeasurementLog(path),
        plan=hours.PLAN,
        machine=hours.machine_of(hours.CLOUD_MACHINE),
        ladder=Ladder.lossless(4),
        beside=NoObserver(),
        clock=clock,
        today=lambda: date(2026, 11, 30),
    )
    return found, clock, path


def batch(position: float, sessions: int = 1) -> AlikeBatch:
    return AlikeBatch(
        split=10, num_sessions=sessions, num_rows=sessions, num_logits=sessions, position=position
    )


def test_alike_batches_alone_are_told() -> None:
    assert alike([entry(1, length=5), entry(1, length=7)]) == batch(6.0, sessions=2)
    assert alike([entry(3, length=0)]) == AlikeBatch(
        split=10, num_sessions=1, num_rows=3, num_logits=1, position=0.0
    )
    assert alike([entry(1, length=5), entry(2, length=7)]) is None
    assert alike([entry(1, length=5), entry(1, length=7, split=9)]) is None
    assert alike([entry(1, length=5, num_watched=1)]) is None
    assert alike([entry(1, length=5, tap=print)]) is None
    assert alike([entry(1, length=5, below=SimpleNamespace())]) is None


def test_a_step_is_told_once_with_what_it_was_made_of_before_it_ran() -> None:
    class Growing:
        def forward(self, batch: Sequence[BatchEntry]) -> list[torch.Tensor]:
            clock.now_s += 2.0
            for part in batch:
                part.lease.length += len(part.rows)
            return [torch.zeros(1, 8) for _ in batch]

    told: list[tuple[AlikeBatch, float]] = []
    clock = Watch()
    engine = MeasuredEngine(Growing(), lambda *step: told.append(step), clock=clock)
    launched = engine.launch([entry(1, length=5)])
    assert launched.is_done
    assert told == []
    assert [np.shape(answer) for answer in launched.result()] == [(1, 8)]
    assert told == [(batch(5.0), 2.0)]


def test_a_minute_of_steps_is_one_line(log: tuple[ServingLog, Watch, Path]) -> None:
    found, clock, path = log
    for seconds in (0.010, 0.030, 0.011):
        found.batch_ran(batch(100.0), seconds)
    found.batch_ran(batch(100.0, sessions=3), 0.020)
    hidden = Ladder.lossless(4).encode("lossless", torch.zeros(1, 4).numpy(), np.array([7]))
    frame = Frame(sequence=0, first_position=0, token_ids=(7,), hidden=hidden)
    found.frame_answered(frame, Timings(codec_s=0.001, sample_s=0.002))
    found.frame_answered(
        Frame(sequence=1, first_position=0, token_ids=(7,), hidden=b"no frame", want_token=False),
        Timings(codec_s=1.0, sample_s=1.0),
    )
    assert read_measurements(path) == []
    clock.now_s = 61.0
    found.batch_ran(batch(1000.0), 0.5)
    (record,) = read_measurements(path)
    assert isinstance(record, MeasuredServing)
    assert record.duration_s == 61.0
    assert [(s.num_sessions, s.num_steps, s.compute_s) for s in record.steps] == [
        (1, 3, 0.011),
        (3, 1, 0.020),
        (1, 1, 0.5),
    ]
    assert [(f.level, f.num_rows, f.decode_s) for f in record.frames] == [("lossless", 1, 0.001)]
    assert (record.sample_s, record.num_samples) == (0.002, 1)
    found.close()  # nothing has happened since
    assert len(read_measurements(path)) == 1


def test_a_log_that_cannot_be_written_is_one_warning(
    log: tuple[ServingLog, Watch, Path], caplog: pytest.LogCaptureFixture
) -> None:
    found, _, path = log
    path.unlink()
    path.mkdir()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            found.batch_ran(batch(1.0), 0.1)
            found.close()
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "measurements end here"
    ]

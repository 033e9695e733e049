"""How long decoding frames keeps the model thread from its next step, with threads and without.

    python benchmarks/server/frame_decoding.py [--width 4096] [--level calibrated] [--sessions 64]
        [--prefills 8] [--step-ms 4] [--threads N] [--seconds 4] [--repeats 3]

Sessions send one-row frames, each the next one as soon as it has its answer. Others send frames of
512 rows meanwhile, `--prefills` in all. The engine is made up: a step sleeps, as a thread that
waits for a GPU does, and holds no lock of Python; with `--parts` it takes the lock between so
many sleeps, as a step of single kernels does. `gap`: from the end of a step to the begin of the
next one. `work`: processor time of the model thread in that gap. The ways run in turn, so that
a noisy moment hits both. `no decoding`: rows are there already, so its gap is the bench's own: the
client runs in this process and takes Python's lock too. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from cloud.engine.batch_entry import BatchEntry, FloatRows
from cloud.engine.frame_decoding import (
    Decoded,
    FrameDecoding,
    RowDecoder,
    default_decode_threads,
)
from cloud.engine.frame_work import FrameWork
from cloud.engine.launches import Answered
from cloud.engine.loop import EngineLoop
from cloud.engine.loop_commands import ActiveSession
from cloud.errors import CloudError
from cloud.sessions.frame_checks import PlainRows, decoded_rows
from codec.bench import synthetic_ladder, synthetic_rows
from codec.ladder import Ladder
from protos.messages import Frame, Result, Timings

PREFILL_ROWS = 512


class SleepingEngine:
    """Steps of one length; notes the time, and the thread's processor time, around each."""

    def __init__(self, step_s: float, num_parts: int) -> None:
        self._part_s, self._num_parts = step_s / num_parts, num_parts
        self._left: tuple[float, float] | None = None
        self.gaps_s: list[float] = []
        self.works_s: list[float] = []
        self.steps_s: list[float] = []
        self.batches: list[int] = []

    def forward(self, batch: Sequence[BatchEntry]) -> list[torch.Tensor]:
        if self._left is not None:
            self.gaps_s.append(time.perf_counter() - self._left[0])
            self.works_s.append(time.thread_time() - self._left[1])
        self.batches.append(len(batch))
        begun_s = time.perf_counter()
        for _ in range(self._num_parts):
            time.sleep(self._part_s)
        self.steps_s.append(time.perf_counter() - begun_s)
        answers = [torch.zeros(entry.num_logits, 4) for entry in batch]
        self._left = time.perf_counter(), time.thread_time()
        return answers


class BenchSession:
    """Decodes each frame as a server's session does, and has no other rules."""

    def __init__(self, ladder: Ladder, decoded: FloatRows | None = None) -> None:
        self._decoded = decoded
        self.lease: Any = None
        self.token_rows = 0
        self.max_positions = 0
        self.recalls = False
        self.num_frames = 0
        self._ladder = ladder

    def decoder_of(self, frame: Frame) -> RowDecoder | None:
        is_next = frame.sequence == self.num_frames and self._decoded is None
        return PlainRows(self._ladder, frame) if is_next else None

    def begin(self, frame: Frame, decoded: Decoded | None = None) -> FrameWork | Result:
        if self._decoded is not None:
            rows = self._decoded
        else:
            rows = decoded_rows(self._ladder, frame) if decoded is None else decoded.rows()
        self.num_frames += 1
        return FrameWork(frame=frame, rows=rows, num_logits=1)

    def finish(
        self,
        work: FrameWork,
        answer: Answered,
        timings: Timings,
        elapsed_s: Callable[[], float] = lambda: 0.0,
    ) -> Result:
        return Result(sequence=work.frame.sequence, token_ids=(1,), num_tokens=1)

    def close(self) -> None:
        pass


def frame_of(ladder: Ladder, level: str, num_rows: int) -> Frame:
    rows, ids = synthetic_rows(ladder, num_rows)
    return Frame(
        sequence=0,
        first_position=0,
        token_ids=tuple(int(token) for token in ids),
        hidden=ladder.encode(level, rows, np.asarray(ids, dtype=np.int64)),
    )


def with_sequence(frame: Frame, sequence: int) -> Frame:
    return Frame(
        sequence=sequence, first_position=0, token_ids=frame.token_ids, hidden=frame.hidden
    )


def run_once(
    options: argparse.Namespace,
    ladder: Ladder,
    row: Frame,
    chunk: Frame,
    decoding: FrameDecoding | None,
) -> dict[str, Any]:
    """One run of `--seconds`: what the model thread did in it. decoding: None: there is none."""
    decoded = decoded_rows(ladder, row) if decoding is None else None
    engine = SleepingEngine(options.step_ms / 1e3, options.parts)
    loop = EngineLoop(engine, decoding=decoding)
    answers: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def hear(index: int, answer: Result | CloudError) -> None:
        if isinstance(answer, CloudError):
            raise answer
        answers.put(index)

    actives = [
        ActiveSession(BenchSession(ladder, decoded), partial(hear, index))
        for index in range(options.sessions + options.prefills)
    ]
    loop.start()
    for active in actives[: options.sessions]:
        loop.submit(active, row)
    begun_s, num_answers, num_prefills = time.perf_counter(), 0, 0
    sequences = [0] * options.sessions
    while (now_s := time.perf_counter()) < begun_s + options.seconds:
        # The long frames are spread over the first half of the run.
        due = int(options.prefills * min(1.0, 2 * (now_s - begun_s) / options.seconds))
        if num_prefills < due:
            loop.submit(actives[options.sessions + num_prefills], chunk)
            num_prefills += 1
        index = answers.get(timeout=60)
        if index is not None and index < options.sessions:
            num_answers += 1
            sequences[index] += 1
            loop.submit(actives[index], with_sequence(row, sequences[index]))
    seconds = time.perf_counter() - begun_s
    loop.stop()
    return {
        "gap_ms": 1e3 * statistics.fmean(engine.gaps_s),
        "gap_max_ms": 1e3 * max(engine.gaps_s),
        "work_ms": 1e3 * statistics.fmean(engine.works_s),
        "step_ms": 1e3 * statistics.fmean(engine.steps_s),
        "steps_per_s": len(engine.batches) / seconds,
        "batch": statistics.fmean(engine.batches),
        "frames_per_s": num_answers / seconds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--level", default="calibrated")
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--prefills", type=int, default=8)
    parser.add_argument("--step-ms", type=float, default=4.0)
    parser.add_argument("--parts", type=int, default=1, help="sleeps of one step")
    parser.add_argument("--switch-ms", type=float, default=1e3 * sys.getswitchinterval())
    parser.add_argument("--threads", type=int, default=max(1, default_decode_threads()))
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    sys.setswitchinterval(options.switch_ms / 1e3)
    ladder = synthetic_ladder(options.width)
    row = frame_of(ladder, options.level, 1)
    chunk = frame_of(ladder, options.level, PREFILL_ROWS)
    count = options.threads
    ways: dict[str, Callable[[], FrameDecoding | None]] = {
        "no decoding": lambda: None,
        "model thread": FrameDecoding,
        "threads, long frames": lambda: FrameDecoding(count, short_frames=False),
        "threads, all frames": lambda: FrameDecoding(count),
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, decoding in ways.items():
            runs[name].append(run_once(options, ladder, row, chunk, decoding()))
    figures = {
        name: {key: round(statistics.median(run[key] for run in taken), 2) for key in taken[0]}
        for name, taken in runs.items()
    }
    before = figures["model thread"]
    report = {
        "command": " ".join(sys.argv),
        "cpus": os.cpu_count(),
        "level": options.level,
        "threads_left": threading.active_count(),
        **figures,
        "over the model thread": {
            name: {key: round(after[key] / before[key], 3) for key in before if before[key]}
            for name, after in figures.items()
        },
    }
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

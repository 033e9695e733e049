"""What a server's steps took, as lines of a measurement log: one for each minute with work.

Alike steps are kept together, and so are frames of one level. No line has a text, a token id, a
session or an address.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import date
from statistics import fmean, median
from typing import Final

from cloud.engine.loop_observer import LoopObserver
from cloud.engine.measured_engine import AlikeBatch
from codec.errors import CodecError
from codec.ladder import Ladder
from hwprofiles.peak_memory import peak_memory_bytes
from optimizer.artifacts.plan import Plan
from optimizer.errors import MeasurementError
from optimizer.measured.log import MeasurementLog
from optimizer.measured.record import (
    MOST_GROUPS,
    DecodedFrames,
    MeasuredMachine,
    MeasuredServing,
    ServerSteps,
    bare_plan,
    history_class,
)
from protos.messages import Frame, Timings

logger = logging.getLogger(__name__)

INTERVAL_S: Final = 60.0
MOST_KEPT: Final = 256  # of one kind in an interval; the first ones say what the others would


class ServingLog:
    """A LoopObserver beside another one, and told of steps. All on the model thread but `close`,
    which comes after that thread has ended.

    A log that cannot be written any more is one warning; serving goes on. ladder: of the
    plan's split, from which names of levels come; those of other splits have the same.
    """

    def __init__(
        self,
        log: MeasurementLog,
        *,
        plan: Plan,
        machine: MeasuredMachine,
        ladder: Ladder,
        beside: LoopObserver,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], date] = date.today,
    ) -> None:
        self._log: MeasurementLog | None = log
        self._plan = bare_plan(plan)
        self._machine = machine
        self._ladder = ladder
        self._beside = beside
        self._clock = clock
        self._today = today
        self._forget()

    def batch_ran(self, batch: AlikeBatch, duration_s: float) -> None:
        """An alike batch ran (`cloud.engine.measured_engine`)."""
        if self._log is None:
            return
        key = (
            batch.split,
            batch.num_sessions,
            batch.num_rows,
            batch.num_logits,
            history_class(batch.position),
        )
        if key in self._steps or len(self._steps) < MOST_GROUPS:
            kept = self._steps.setdefault(key, [])
            if len(kept) < MOST_KEPT:
                kept.append((batch.position, duration_s))
        if self._clock() - self._begun_s >= INTERVAL_S:
            self.close()

    def frame_answered(self, frame: Frame, timings: Timings) -> None:
        """A frame was answered (LoopObserver): note what decoding and drawing took."""
        self._beside.frame_answered(frame, timings)
        if self._log is None:
            return
        if frame.want_token and not frame.num_drafts and len(self._samples) < MOST_KEPT:
            self._samples.append(timings.sample_s)
        if not frame.hidden:
            return
        try:
            key = (self._ladder.level_of(frame.hidden), len(frame.token_ids))
        except CodecError:  # the session has refused it
            return
        if key in self._frames or len(self._frames) < MOST_GROUPS:
            kept = self._frames.setdefault(key, [])
            if len(kept) < MOST_KEPT:
                kept.append(timings.codec_s)

    def frame_waited(self, wait_s: float) -> None:
        """See LoopObserver."""
        self._beside.frame_waited(wait_s)

    def step_ran(self, duration_s: float, *, num_sessions: int, num_rows: int) -> None:
        """See LoopObserver."""
        self._beside.step_ran(duration_s, num_sessions=num_sessions, num_rows=num_rows)

    def close(self) -> None:
        """Write what the interval has seen, if anything, and begin another one."""
        if self._log is not None and self._steps:
            try:
                self._log.append(self._record())
            except (MeasurementError, ValueError) as error:
                logger.warning("measurements end here: %s", error)
                self._log = None
        self._forget()

    def _forget(self) -> None:
        self._begun_s = self._clock()
        self._steps: dict[tuple[int, int, int, int, int], list[tuple[float, float]]] = {}
        self._frames: dict[tuple[str, int], list[float]] = {}
        self._samples: list[float] = []

    def _record(self) -> MeasuredServing:
        return MeasuredServing(
            date=self._today().isoformat(),
            machine=self._machine,
            plan=self._plan,
            duration_s=self._clock() - self._begun_s,
            steps=tuple(
                ServerSteps(
                    split=split,
                    num_sessions=num_sessions,
                    num_rows=num_rows,
                    num_logits=num_logits,
                    num_steps=len(kept),
                    position=fmean(position for position, _ in kept),
                    compute_s=median(seconds for _, seconds in kept),
                )
                for (split, num_sessions, num_rows, num_logits, _), kept in self._steps.items()
            ),
            frames=tuple(
                DecodedFrames(
                    level=level, num_rows=num_rows, num_frames=len(kept), decode_s=median(kept)
                )
                for (level, num_rows), kept in self._frames.items()
            ),
            sample_s=median(self._samples) if self._samples else None,
            num_samples=len(self._samples),
            peak_memory_bytes=peak_memory_bytes(),
        )

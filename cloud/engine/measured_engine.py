"""An engine that tells how long each step took and what it was made of."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cloud.engine.batch_entry import BatchEntry
from cloud.engine.launches import Answered, ForwardEngine, Launch, LaunchingEngine, launch


@dataclass(frozen=True, slots=True, kw_only=True)
class AlikeBatch:
    """A batch whose sessions enter at one split and bring as many rows each.

    position: mean tokens cached before a session's rows.
    """

    split: int
    num_sessions: int
    num_rows: int
    num_logits: int
    position: float


TellStep = Callable[[AlikeBatch, float], None]  # and its seconds


class MeasuredEngine:
    """A LaunchingEngine around another engine. tell: called with each alike batch that has run, on
    the model thread; it must not raise."""

    def __init__(
        self,
        engine: ForwardEngine | LaunchingEngine,
        tell: TellStep,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._engine = engine
        self._tell = tell
        self._clock = clock

    def launch(self, batch: Sequence[BatchEntry]) -> Launch:
        """See LaunchingEngine."""
        made_of = alike(batch)  # before leases grow
        begun_s = self._clock()
        started = launch(self._engine, batch)
        if made_of is None:
            return started
        what = made_of
        return _ToldLaunch(started, lambda: self._tell(what, self._clock() - begun_s))


class _ToldLaunch:
    """A launch that tells once it has ended."""

    def __init__(self, started: Launch, tell: Callable[[], None]) -> None:
        self._started = started
        self._tell = tell

    @property
    def is_done(self) -> bool:
        return self._started.is_done

    def result(self) -> list[Answered]:
        answers = self._started.result()
        self._tell()
        return answers


def alike(batch: Sequence[BatchEntry]) -> AlikeBatch | None:
    """What the batch is made of; None where its sessions differ, or where it does more than a plan
    counts: layers below the split, logits that are watched, states that are captured, and less
    where keys are selected."""
    first = batch[0]
    rows = len(first.rows)
    for entry in batch:
        more = entry.below is not None or entry.num_watched or entry.tap is not None
        if (
            more
            or entry.context is not None
            or entry.lease.split != first.lease.split
            or len(entry.rows) != rows
        ):
            return None
    return AlikeBatch(
        split=first.lease.split,
        num_sessions=len(batch),
        num_rows=rows * len(batch),
        num_logits=sum(entry.num_logits for entry in batch),
        position=sum(entry.lease.length for entry in batch) / len(batch),
    )

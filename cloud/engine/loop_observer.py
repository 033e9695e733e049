"""Who is told how long frames wait for a batch and how long the batches take."""

from __future__ import annotations

from typing import Protocol

from protos.messages import Frame, Timings


class LoopObserver(Protocol):
    """Who is told how long frames wait and steps take, in seconds, and of each answered frame
    where its time went."""

    def frame_waited(self, wait_s: float) -> None: ...

    def step_ran(self, duration_s: float, *, num_sessions: int, num_rows: int) -> None: ...

    def frame_answered(self, frame: Frame, timings: Timings) -> None: ...


class NoObserver:
    """A `LoopObserver` that keeps nothing."""

    def frame_waited(self, wait_s: float) -> None:
        """Forget it."""

    def step_ran(self, duration_s: float, *, num_sessions: int, num_rows: int) -> None:
        """Forget it."""

    def frame_answered(self, frame: Frame, timings: Timings) -> None:
        """Forget it."""

"""Who is told how long frames wait for a batch and how long the batches take."""

from __future__ import annotations

from typing import Protocol


class LoopObserver(Protocol):
    """Who is told how long frames wait and steps take, in seconds."""

    def frame_waited(self, wait_s: float) -> None: ...

    def step_ran(self, duration_s: float, *, num_sessions: int, num_rows: int) -> None: ...


class NoObserver:
    """A `LoopObserver` that keeps nothing."""

    def frame_waited(self, wait_s: float) -> None:
        """Forget it."""

    def step_ran(self, duration_s: float, *, num_sessions: int, num_rows: int) -> None:
        """Forget it."""

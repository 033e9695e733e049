"""The answers that run at once: at most so many, and none is left behind at the end.

A slot is taken before any work is done for a request, and is free again when the generation's
thread is done, or when the request failed before it had one.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from edge.api.errors import ApiError
from edge.api.stream import CancellableRun, RunningAnswer, T

FIRST_TYPICAL_S: Final = 1.0  # before an answer has ended
NEWEST_SHARE: Final = 0.2
LOOK_S: Final = 0.02


class AnswerSlots:
    """`limit` slots. Lives on the event loop's thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._num_taken = 0
        self._running: set[RunningAnswer[Any]] = set()
        self._typical_s = FIRST_TYPICAL_S  # how long an answer takes, for Retry-After

    @property
    def num_taken(self) -> int:
        """Requests that are worked on."""
        return self._num_taken

    def check(self) -> None:
        """ApiError 429 when no slot is free."""
        if self._num_taken >= self._limit:
            raise ApiError(
                f"{self._limit} requests are running already",
                status=429,
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                retry_after_s=self._typical_s,
            )

    def take(self) -> None:
        """Take a slot: `free` or `run` follows. ApiError 429 when none is free."""
        self.check()
        self._num_taken += 1

    def free(self) -> None:
        """Give back a slot that no answer runs in."""
        self._num_taken -= 1

    def run(self, run: CancellableRun[T]) -> RunningAnswer[T]:
        """Start a generation in a slot that was taken; the slot is free when it has ended."""
        started_s = time.monotonic()

        def ended() -> None:
            self._running.discard(running)
            self._typical_s += NEWEST_SHARE * (time.monotonic() - started_s - self._typical_s)
            self.free()

        running = RunningAnswer(run, ended)
        self._running.add(running)
        return running

    def cancel_all(self) -> None:
        """End every answer soon."""
        for answer in tuple(self._running):
            answer.cancel()

    async def end_all(self, within_s: float) -> None:
        """End every answer; returns when each has told its server so, or after `within_s`."""
        deadline_s = time.monotonic() + within_s
        self.cancel_all()
        while self._running and time.monotonic() < deadline_s:
            await asyncio.sleep(LOOK_S)

"""The answers that run at once: at most so many, and none is left behind at the end.

A slot is taken before any work is done for a request, and is free again when the generation's
thread is done, or when the request failed before it had one.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from edge.api.errors import ApiError
from edge.api.stream import CancellableRun, RunningAnswer, T

FIRST_TYPICAL_S: Final = 1.0  # before an answer has ended
NEWEST_SHARE: Final = 0.2
LOOK_S: Final = 0.02
MAX_WAIT_S: Final = 60.0  # a client's patience is seldom longer


class AnswerSlots:
    """`limit` slots, and room for `queue` requests that wait for one, in the order in which they
    came. Lives on the event loop's thread."""

    def __init__(self, limit: int, *, queue: int = 0, max_wait_s: float = MAX_WAIT_S) -> None:
        self._limit = limit
        self._queue = queue
        self._max_wait_s = max_wait_s
        self._num_taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._running: set[RunningAnswer[Any]] = set()
        self._typical_s = FIRST_TYPICAL_S  # how long an answer takes, for Retry-After

    @property
    def num_taken(self) -> int:
        """Requests that are worked on."""
        return self._num_taken

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    def check(self) -> None:
        """ApiError 429 when no slot is free and nobody more may wait."""
        if self._num_taken >= self._limit and len(self._waiting) >= self._queue:
            raise self._full()

    async def take(self) -> None:
        """Take a slot, perhaps after a wait: `free` or `run` follows. ApiError 429 where none."""
        self.check()
        if self._num_taken < self._limit and not self._waiting:
            self._num_taken += 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await asyncio.wait_for(asyncio.shield(place), self._max_wait_s)
        except BaseException as error:
            if place.done() and not place.cancelled():  # it came in this very moment
                self.free()
            else:
                self._waiting.remove(place)
            if isinstance(error, asyncio.TimeoutError):
                raise self._full() from error
            raise

    def free(self) -> None:
        """Give back a slot that no answer runs in; whoever waits longest gets it."""
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self._num_taken -= 1

    def _full(self) -> ApiError:
        waiting = f", and {self._queue} wait" if self._queue else ""
        return ApiError(
            f"{self._limit} requests are running already{waiting}",
            status=429,
            kind="rate_limit_error",
            code="rate_limit_exceeded",
            retry_after_s=self._typical_s * (1 + len(self._waiting)),
        )

    def run(
        self, run: CancellableRun[T], then: Callable[[], None] = lambda: None
    ) -> RunningAnswer[T]:
        """Start a generation in a slot that was taken; the slot is free when it has ended.

        then: called at that moment.
        """
        started_s = time.monotonic()

        def ended() -> None:
            self._running.discard(running)
            then()
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

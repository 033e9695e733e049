"""Answers on their way from the model thread to the streams of one event loop.

To wake an event loop costs a system call and a change of thread. The loop hands out everything
that it finds in the mailbox, so the answers of a whole batch wake it once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """One thread posts. The queues belong to the event loop on which this was made."""

    def __init__(self) -> None:
        self._event_loop = asyncio.get_running_loop()
        self._posted: deque[tuple[asyncio.Queue[T], T]] = deque()
        self._woken = False

    def post(self, queue: asyncio.Queue[T], answer: T) -> None:
        """Put `answer` into `queue` soon. Never blocks."""
        self._posted.append((queue, answer))
        if not self._woken:
            self._woken = True
            # The event loop may be gone when the server is stopping.
            with contextlib.suppress(RuntimeError):
                self._event_loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        self._woken = False  # first: what is posted from here on wakes the loop again
        while self._posted:
            queue, answer = self._posted.popleft()
            queue.put_nowait(answer)

"""Answers on their way from the model thread to the streams of one event loop.

Waking an event loop is a system call and a change of thread. What lies in the mailbox when the
loop comes round is handed out at once, so a batch of sessions costs one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """`post` from any one thread; the queues belong to the event loop that made this."""

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

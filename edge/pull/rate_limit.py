"""At most so many bytes a second, evenly: the receiver waits, and HTTP/2 then stops the sender."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from protos.pull import MAX_CHUNK_BYTES, MIN_CHUNK_BYTES

# A chunk should not take longer than this.
_CHUNK_S: Final = 0.25


class PullRate:
    """bytes_per_s: None for no limit. clock, sleep: seconds."""

    def __init__(
        self,
        bytes_per_s: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._sleep = sleep
        self._due_s = clock()

    @property
    def chunk_bytes(self) -> int:
        """How many bytes a chunk should have at most."""
        if self._bytes_per_s is None:
            return MAX_CHUNK_BYTES
        return int(min(max(self._bytes_per_s * _CHUNK_S, MIN_CHUNK_BYTES), MAX_CHUNK_BYTES))

    def took(self, num_bytes: int) -> None:
        """So many bytes have come: wait until the next ones may. Lost time is not caught up."""
        if self._bytes_per_s is None:
            return
        now_s = self._clock()
        self._due_s = max(self._due_s, now_s) + num_bytes / self._bytes_per_s
        self._sleep(self._due_s - now_s)

"""How many bytes the rows may take that sessions hold for later frames to refer to.

They lie beside the KV cache. A session takes its part when it opens, for its longest sequence, and
gives it back when it closes. Where there is no room for it, its frames refer to nothing.
"""

from __future__ import annotations

import threading
from typing import Final

from codec.session_rows import held_bytes

KV_SHARE: Final = 8  # rows take at most this part of what the KV cache may take


class RowMemory:
    """Of all sessions of a model. Safe to use from several threads."""

    def __init__(self, limit_bytes: int, *, hidden_size: int) -> None:
        self._limit_bytes = limit_bytes
        self._hidden_size = hidden_size
        self._lock = threading.Lock()
        self._used_bytes = 0

    @property
    def used_bytes(self) -> int:
        """What sessions have taken."""
        return self._used_bytes

    def take(self, num_tokens: int) -> RowRoom | None:
        """Room for the rows of so many tokens; None: there is none."""
        num_bytes = held_bytes(num_tokens, self._hidden_size)
        with self._lock:
            if self._used_bytes + num_bytes > self._limit_bytes:
                return None
            self._used_bytes += num_bytes
        return RowRoom(self, num_bytes)

    def give_back(self, num_bytes: int) -> None:
        """What `take` gave, once."""
        with self._lock:
            self._used_bytes -= num_bytes


class RowRoom:
    """One session's part. `close` gives it back; doing it again does nothing."""

    def __init__(self, rows: RowMemory, num_bytes: int) -> None:
        self._rows = rows
        self._num_bytes = num_bytes

    def close(self) -> None:
        """See the class."""
        num_bytes, self._num_bytes = self._num_bytes, 0
        if num_bytes:
            self._rows.give_back(num_bytes)

"""Give memory back to the operating system after large frames were freed.

glibc keeps what is freed, in the arena of the thread that allocated it, and a large block that was
freed makes it keep larger ones. `malloc_trim` returns the free pages of all arenas. It takes
milliseconds for each GiB, so it runs when no frame is held, and only after much was freed. Source:
malloc_trim(3). Linux with glibc only; elsewhere there is nothing to call.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

from cloud.server.byte_budget import ByteBudget

TRIM_AFTER_BYTES: Final = 16 << 20
# Held bytes up to which the server counts as idle.
IDLE_BYTES: Final = 1 << 20
LONGEST_WAIT_S: Final = 30.0


class Trimmer:
    """Decides when to trim; `due` is asked now and then, `trim` may run on any thread."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._trimmed_at_bytes = 0
        self._trimmed_s = 0.0
        self._malloc_trim = _malloc_trim()

    def due(self, now_s: float) -> bool:
        """Whether there is enough to give back, and the server idle or busy for long."""
        freed = self._budget.released_bytes - self._trimmed_at_bytes
        if self._malloc_trim is None or freed < TRIM_AFTER_BYTES:
            return False
        is_idle = self._budget.used_bytes <= IDLE_BYTES
        if not is_idle and now_s - self._trimmed_s < LONGEST_WAIT_S:
            return False
        self._trimmed_at_bytes += freed
        self._trimmed_s = now_s
        return True

    def trim(self) -> None:
        """Return free pages to the operating system."""
        if self._malloc_trim is not None:
            self._malloc_trim(0)


def _malloc_trim() -> ctypes._NamedFuncPointer | None:
    if not sys.platform.startswith("linux"):
        return None
    found: ctypes._NamedFuncPointer | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if found is not None:
        found.argtypes, found.restype = [ctypes.c_size_t], ctypes.c_int
    return found

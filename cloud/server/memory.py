"""Give memory back to the operating system after large frames were freed.

glibc keeps what is freed, in the arena of the thread that allocated it, and a large block that was
freed makes it keep larger ones. `trim_heap` returns the free pages of all arenas. It takes
milliseconds for each GiB, so it runs when messages came and then it was quiet.
"""

from __future__ import annotations

from typing import Final

from cloud.server.byte_budget import ByteBudget
from hwprofiles.heap import can_trim, trim_heap

# What passed since the last time, from which on it is worth it.
WORTH_BYTES: Final = 1 << 20
QUIET_S: Final = 1.0
NOW_AND_THEN_S: Final = 30.0


class Trimmer:
    """Decides when to trim; `due` is asked now and then, `trim` may run on any thread."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._trimmed_at_bytes = 0
        self._trimmed_s = 0.0
        self._seen_bytes = 0
        self._quiet_since_s = 0.0

    def due(self, now_s: float) -> bool:
        """Whether something passed since the last time, and it is quiet or was busy for long."""
        passed_bytes = self._budget.passed_bytes
        if passed_bytes != self._seen_bytes:
            self._seen_bytes, self._quiet_since_s = passed_bytes, now_s
        is_quiet = now_s - self._quiet_since_s >= QUIET_S
        if not is_quiet and now_s - self._trimmed_s < NOW_AND_THEN_S:
            return False
        if passed_bytes - self._trimmed_at_bytes < WORTH_BYTES:
            return False
        self._trimmed_at_bytes, self._trimmed_s = passed_bytes, now_s
        return can_trim()

    def trim(self) -> None:
        """Return free pages to the operating system."""
        trim_heap()

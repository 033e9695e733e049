"""An asyncio event loop whose timers are good to a tenth of a millisecond.

asyncio on Linux waits with epoll, and rounds every wait up to a whole millisecond, which is the
accuracy the emulator as a whole has to reach. The remedy: an epoll set is itself a file that
select(2) can wait for, with microseconds.
"""

from __future__ import annotations

import asyncio
import select
import selectors
import sys

_MAX_SELECT_FD = 1024  # FD_SETSIZE: select(2) cannot name files from here on


if sys.platform == "linux":

    class _PreciseEpollSelector(selectors.EpollSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is not None and timeout > 0 and self.fileno() < _MAX_SELECT_FD:
                select.select([self.fileno()], (), (), timeout)
                timeout = 0
            return super().select(timeout)

    def precise_event_loop() -> asyncio.SelectorEventLoop:
        """A new event loop, not yet set as anyone's current one."""
        return asyncio.SelectorEventLoop(_PreciseEpollSelector())

else:

    def precise_event_loop() -> asyncio.SelectorEventLoop:
        """A new event loop; kqueue and select do not round."""
        return asyncio.SelectorEventLoop()

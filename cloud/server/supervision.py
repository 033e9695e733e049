"""Notices when a part of the server has stopped for good, and gives memory back when it is idle.

A part is asked for its trouble several times a second: the model thread (dead, or in a step that
does not end), the metrics thread, gRPC's own loop. The first trouble ends the server: see
`Server.fail` in `cloud.server.process`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from cloud.server.memory import Trimmer

# What is wrong with a part; None: nothing.
Check: TypeAlias = Callable[[], str | None]

POLL_S: Final = 0.1


class Supervisor:
    """Asks `checks` in turn until one of them has trouble, and tells `fail` about it, once."""

    def __init__(
        self,
        checks: Sequence[Check],
        *,
        fail: Callable[[str], Awaitable[None]],
        trimmer: Trimmer,
    ) -> None:
        self._checks = checks
        self._fail = fail
        self._trimmer = trimmer

    async def run(self) -> None:
        """Watch until there is trouble, or until it is cancelled."""
        while True:
            for check in self._checks:
                if (trouble := check()) is not None:
                    await self._fail(trouble)
                    return
            if self._trimmer.due(time.monotonic()):
                await asyncio.to_thread(self._trimmer.trim)
            await asyncio.sleep(POLL_S)

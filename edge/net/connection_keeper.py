"""Keeps the connection to a server ready between generations, for programs that wait for a user.

A small question every `INTERVAL_S` shows that the path still works, and keeps the connection in the
tables of the routers between. Where no answer comes, the channel is made anew, so that the next
generation does not wait for gRPC to notice. A clock on the wall that has moved on further than the
monotonic one shows that the device has slept; the question is then asked at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from edge.errors import ConnectError, DeadlineError, LostError, TransportError

INTERVAL_S: Final = 30.0
TICK_S: Final = 2.0
CHECK_S: Final = 3.0  # how long an answer may take
SLEPT_S: Final = 5.0  # more than clocks are set by


class KeptTransport(Protocol):
    """The part of `GrpcTransport` that this module uses."""

    @property
    def is_idle(self) -> bool: ...

    def describe(self, timeout_s: float) -> object: ...

    def renew(self) -> bool: ...


class Clocks(NamedTuple):
    """Seconds of a clock that stands while the device sleeps, and of one that does not."""

    running_s: float
    wall_s: float


def now() -> Clocks:
    """What both clocks show."""
    return Clocks(time.monotonic(), time.time())


class ConnectionKeeper:
    """See the module's docstring. `stop` ends its thread."""

    def __init__(self, transport: KeptTransport, *, clocks: Callable[[], Clocks] = now) -> None:
        self._transport = transport
        self._clocks = clocks
        self._seen = clocks()
        self._checked_s = self._seen.running_s - INTERVAL_S  # the first tick asks
        self.is_answered: bool | None = None  # the last question; None: none was asked yet
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="connection-keeper", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Ask nothing more. `join` waits for a question that is on its way."""
        self._stopped.set()

    def join(self) -> None:
        """Wait for the end, after `stop` and once the transport is closed."""
        self._thread.join(CHECK_S)

    def tick(self) -> None:
        """Look at the clocks, and ask the server if it is time."""
        seen, before = self._clocks(), self._seen
        self._seen = seen
        slept_s = (seen.wall_s - before.wall_s) - (seen.running_s - before.running_s)
        is_due = seen.running_s - self._checked_s >= INTERVAL_S or slept_s > SLEPT_S
        if is_due and self._transport.is_idle:
            self._checked_s = seen.running_s
            self._check()

    def _check(self) -> None:
        try:
            self._transport.describe(CHECK_S)
        except (ConnectError, DeadlineError, LostError):
            self.is_answered = False
            self._transport.renew()
            return
        except TransportError:
            pass  # it answers, if only to refuse: a generation will say so
        self.is_answered = True

    def _run(self) -> None:
        while not self._stopped.is_set():
            self.tick()
            self._stopped.wait(TICK_S)

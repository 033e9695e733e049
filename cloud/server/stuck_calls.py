"""Calls that have ended here and that gRPC cannot end: their client reads nothing.

A status waits behind the answers before it, and gRPC for Python cannot reset a stream from the
server's side. So such a call keeps its last message until its connection ends. There are few of
them from one address: whoever has that many may make no further calls until it closes them. And no
connection lasts for ever (`cloud.server.process`).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Final

from cloud.errors import CapacityError
from cloud.server.places import CallWithPeer, address_of_peer

MAX_STUCK_PER_PEER: Final = 8


class StuckCalls:
    """How many calls are stuck, by address. Lives on the event loop's thread."""

    def __init__(self) -> None:
        self._stuck: Counter[str] = Counter()  # without addresses that have none

    @contextlib.contextmanager
    def one(self, call: CallWithPeer) -> Iterator[None]:
        """Count a call as stuck while the context lasts."""
        peer = address_of_peer(call.peer())
        self._stuck[peer] += 1
        try:
            yield
        finally:
            self._stuck[peer] -= 1
            if not self._stuck[peer]:
                del self._stuck[peer]

    def check(self, call: CallWithPeer) -> None:
        """Raise CapacityError where the caller's address has too many stuck calls."""
        if self._stuck and self._stuck[address_of_peer(call.peer())] >= MAX_STUCK_PER_PEER:
            raise CapacityError("your address has too many calls whose answers nobody reads")

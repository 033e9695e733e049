"""Calls that have ended here and that gRPC cannot end: their client reads nothing.

A status waits behind the answers before it, and gRPC for Python cannot reset a stream from the
server's side. So such a call keeps its last message until its connection ends. There are few of
them from one address: whoever has that many may make no further calls until it closes them. And no
connection lasts for ever (`cloud.server.process`).
"""

from __future__ import annotations

from typing import Final, Protocol

from cloud.errors import CapacityError
from cloud.server.places import address_of_peer

MAX_STUCK_PER_PEER: Final = 8


class EndingCall(Protocol):
    """The part of a gRPC call that says who calls, and whether it is over."""

    def peer(self) -> str: ...

    def done(self) -> bool: ...


class StuckCalls:
    """The stuck calls by address. Lives on the event loop's thread."""

    def __init__(self) -> None:
        self._calls: dict[str, list[EndingCall]] = {}

    def add(self, call: EndingCall) -> None:
        """A call that has ended here and that its client does not let end."""
        self._calls.setdefault(address_of_peer(call.peer()), []).append(call)

    def check(self, call: EndingCall) -> None:
        """Raise CapacityError where the caller's address has too many stuck calls."""
        if not self._calls:
            return
        for peer, calls in list(self._calls.items()):
            left = [one for one in calls if not one.done()]
            if left:
                self._calls[peer] = left
            else:
                del self._calls[peer]
        if len(self._calls.get(address_of_peer(call.peer()), ())) >= MAX_STUCK_PER_PEER:
            raise CapacityError("your address has too many calls whose answers nobody reads")

"""How many calls of one kind run at once: in all, and from one address.

For calls that anybody may make before the server knows that they are worth something: streams that
have not said what they want, link probes, health watches. Ours.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Protocol
from urllib.parse import unquote

from cloud.errors import CapacityError


class CallWithPeer(Protocol):
    """The part of a gRPC call that says who calls."""

    def peer(self) -> str: ...


class Places:
    """Places for calls of one kind. Lives on the event loop's thread."""

    def __init__(self, kind: str, *, total: int, per_peer: int) -> None:
        """kind: in the plural, for the error."""
        self._kind = kind
        self._total = total
        self._per_peer = per_peer
        self._taken: Counter[str] = Counter()  # without addresses that have none

    @property
    def num_taken(self) -> int:
        """How many calls have a place."""
        return self._taken.total()

    @contextlib.contextmanager
    def one(self, call: CallWithPeer) -> Iterator[None]:
        """A place while the context lasts. Raises CapacityError where there is none."""
        peer = address_of_peer(call.peer())
        if self.num_taken >= self._total or self._taken[peer] >= self._per_peer:
            raise CapacityError(f"too many {self._kind} at once")
        self._taken[peer] += 1
        try:
            yield
        finally:
            self._taken[peer] -= 1
            if not self._taken[peer]:
                del self._taken[peer]


def address_of_peer(peer: str) -> str:
    """The address in gRPC's name of a peer, such as `ipv4:10.0.0.1:5023`, without its port."""
    scheme, _, rest = peer.partition(":")
    return unquote(rest.rpartition(":")[0]) if scheme in ("ipv4", "ipv6") else peer

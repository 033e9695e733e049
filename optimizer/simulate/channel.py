"""One client's gRPC channel to one server, as far as it decides whether an Open gets through.

Once an attempt to connect has failed, gRPC repeats it by itself, less and less often. Until an
attempt succeeds every call fails at once, whatever the server does. This is gRPC's connection
backoff, with the intervals that `edge.net.grpc_transport` sets. The real edge behaves so.
"""

from __future__ import annotations

import math
from typing import Final, Literal, Protocol

FIRST_RETRY_S: Final = 0.1
RETRY_GROWTH: Final = 1.6
MOST_RETRY_S: Final = 2.0

ChannelState = Literal["new", "connected", "failing"]


class ServerLife(Protocol):
    """What a channel asks of a server: its losses so far, whether it listens, and since when."""

    @property
    def life(self) -> int: ...
    @property
    def alive(self) -> bool: ...
    @property
    def since_s(self) -> float: ...


class Channel:
    """See the module's docstring. A connection holds until the server is lost."""

    __slots__ = ("_hello_s", "_life", "_retry_s", "_wait_s")

    def __init__(self) -> None:
        self._life = -1  # the server's, in which the connection was made
        self._hello_s = 0.0  # what making it took
        self._retry_s = math.inf  # gRPC's next attempt, after a failed one
        self._wait_s = FIRST_RETRY_S  # from that to the one after

    def connected(self, server: ServerLife, hello_s: float) -> None:
        """The connection was made; that took `hello_s`."""
        self._life, self._hello_s = server.life, hello_s
        self._retry_s, self._wait_s = math.inf, FIRST_RETRY_S

    def failed(self, begun_s: float) -> None:
        """Nobody listened to an attempt that began at `begun_s`."""
        self._retry_s = begun_s + self._wait_s
        self._wait_s = min(RETRY_GROWTH * self._wait_s, MOST_RETRY_S)

    def state(self, server: ServerLife, now_s: float) -> ChannelState:
        """What a call finds at `now_s`, after all of gRPC's own attempts until then."""
        while self._life != server.life and self._retry_s + self._hello_s <= now_s:
            if server.alive and self._retry_s >= server.since_s:
                self.connected(server, self._hello_s)
            else:
                self.failed(self._retry_s)
        if self._life == server.life:
            return "connected"
        return "new" if self._retry_s == math.inf else "failing"

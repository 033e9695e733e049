"""One client's connection with a time limit for every wait, and errors in OpenAI's shape.

uvicorn answers requests well, but waits without end for the rest of a header, for the end of a body
that nobody needs any more, and for a client that does not read. A watch on each connection looks at
what it waits for and ends it when that takes too long. The limit on the time of a body that is
still wanted is in `edge.api.bodies`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, NamedTuple

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from edge.api.errors import ApiError

logger = logging.getLogger(__name__)

LOOK_S: Final = 1.0  # how often the watch looks, at most; its limits are exact to this
HEADERS_TOO_LONG: Final = 431  # HTTP's status, as h11 hints at it
LOOKS_PER_LIMIT: Final = 4  # more often where a limit is short


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What one client may take. Times in seconds.

    max_connections: open at once, of all clients. headers_s: for the TLS handshake, and for the
    lines before a body. body_s: for a body. drain_s: for the rest of a body after its answer, and
    for the last bytes of an answer after the end. write_s: for a client to read something.
    keep_alive_s: between two requests.
    """

    max_connections: int = 256
    headers_s: float = 10.0
    body_s: float = 30.0
    drain_s: float = 5.0
    write_s: float = 30.0
    keep_alive_s: int = 5


class Wait(Enum):
    """What a connection waits for."""

    HEADERS = auto()  # the client's next request
    DRAIN = auto()  # the rest of a body whose answer is out
    READER = auto()  # the client to read what was sent
    CLOSE = auto()  # the last bytes to leave
    ANSWER = auto()  # our own work: no limit here


class _Watched(NamedTuple):
    """What is waited for, in which request: the same kind in another request begins anew."""

    wait: Wait
    request: object


class GuardedConnection(H11Protocol):
    """uvicorn's HTTP/1.1 connection within `limits`. Lives on the event loop's thread."""

    def __init__(self, limits: ConnectionLimits, **uvicorn_arguments: Any) -> None:
        super().__init__(**uvicorn_arguments)
        self.logger = _PeerLogger(self.logger)  # type: ignore[assignment]
        self._limit_s = {
            Wait.HEADERS: limits.headers_s,
            Wait.DRAIN: limits.drain_s,
            Wait.READER: limits.write_s,
            Wait.CLOSE: limits.drain_s,
        }
        self._max_connections = limits.max_connections
        self._look_s = min(LOOK_S, min(self._limit_s.values()) / LOOKS_PER_LIMIT)
        self._watched = _Watched(Wait.HEADERS, None)
        self._since_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """asyncio's; refuses the client when too many are here."""
        super().connection_made(transport)
        self._since_s = self.loop.time()
        self._timer = self.loop.call_later(self._look_s, self._look)
        if len(self.connections) > self._max_connections:
            self.refuse(
                ApiError(
                    f"{self._max_connections} connections are open already",
                    status=429,
                    kind="rate_limit_error",
                    code="too_many_connections",
                    retry_after_s=self._limit_s[Wait.HEADERS],
                )
            )

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def refuse(self, error: ApiError) -> None:
        """Answer with `error` if no answer has begun, and close. The app hears of a hang-up."""
        logger.debug("a connection of %s ends: %s", self.client, error)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error.body).encode()
            headers = {
                **error.headers,
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                "Connection": "close",
            }
            for event in (
                h11.Response(status_code=error.status, headers=list(headers.items())),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's, while it handles h11's error: what has come is no HTTP request."""
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        message = "the request's headers are too long"
        if status != HEADERS_TOO_LONG:
            message = f"this is no HTTP request that can be read: {error or msg}"
        self.refuse(ApiError(message, status=status))

    def shutdown(self) -> None:
        """uvicorn's: the server stops."""
        try:
            super().shutdown()
        except h11.LocalProtocolError:  # nothing more can be said on this connection
            self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        """uvicorn's: no further request came."""
        try:
            super().timeout_keep_alive_handler()
        except h11.LocalProtocolError:
            self.transport.abort()

    def _unsupported_upgrade_warning(self) -> None:
        """uvicorn's warning: the request is answered as any other, which needs no line."""

    def _look(self) -> None:
        now_s = self.loop.time()
        watched = self._waits_for()
        if watched != self._watched:
            self._watched, self._since_s = watched, now_s
        limit_s = self._limit_s.get(watched.wait)
        if limit_s is not None and now_s - self._since_s >= limit_s:
            self._end(watched.wait)
        self._timer = self.loop.call_later(self._look_s, self._look)

    def _waits_for(self) -> _Watched:
        cycle = self.cycle
        if self.transport.is_closing():
            wait = Wait.CLOSE
        elif self.flow.write_paused:
            wait = Wait.READER
        elif cycle is not None and not cycle.response_complete:
            wait = Wait.ANSWER
        elif self.conn.their_state is h11.SEND_BODY:
            wait = Wait.DRAIN
        else:
            wait = Wait.HEADERS
        return _Watched(wait, cycle)

    def _end(self, wait: Wait) -> None:
        has_begun = bool(self.conn.trailing_data[0])
        if wait is Wait.HEADERS and has_begun:
            self.refuse(ApiError("the request took too long", status=408, code="request_timeout"))
        elif wait in (Wait.HEADERS, Wait.DRAIN):
            self.transport.close()
        else:
            logger.debug("a client does not read its answer: %s", self.client)
            self.transport.abort()


class _PeerLogger(logging.LoggerAdapter[logging.Logger]):
    """uvicorn's logger for one connection: what a client did wrong is a line for --debug only."""

    @property
    def level(self) -> int:
        """The logger's own."""
        return self.logger.level

    def warning(self, msg: object, *args: object, **kwargs: Any) -> None:
        """A debug line."""
        self.debug(msg, *args, **kwargs)

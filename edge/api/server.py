"""Serve the API: check who may reach it, bind, say where, and run until stopped."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Final

import uvicorn

from edge.api.access import ApiAccess
from edge.api.app import END_S, make_app
from edge.api.connection import ConnectionLimits, GuardedConnection
from edge.api.slots import AnswerSlots
from edge.client import EdgeClient
from edge.errors import InputError
from edge.generation.completion import CompletionRequest
from protos.addresses import is_loopback

logger = logging.getLogger(__name__)

BACKLOG: Final = 128
# Open answers get this long when the server is told to stop.
SHUTDOWN_S: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiConfig:
    """Where to listen (port 0: any free one), for whom, and how many requests at once.

    queue: how many requests more may wait. origins: of web pages that may use the API.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    concurrency: int = 1
    access: ApiAccess = field(default_factory=ApiAccess)
    default: CompletionRequest = field(default_factory=CompletionRequest)
    limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    queue: int = 0
    origins: tuple[str, ...] = ()


class ApiServer:
    """One server. `run` blocks; `stop` may be called from another thread or a signal handler."""

    def __init__(self, client: EdgeClient, config: ApiConfig) -> None:
        config.access.check(config.host)
        self._config = config
        slots = AnswerSlots(config.concurrency, queue=config.queue)
        app = make_app(
            client,
            slots,
            concurrency=config.concurrency,
            keys=config.access.keys(),
            loopback_only=is_loopback(config.host),
            default=config.default,
            limits=config.limits,
            origins=config.origins,
        )
        access = config.access
        self._server = _GuardedServer(
            uvicorn.Config(
                app,
                http=GuardedConnection,
                ws="none",
                log_config=None,
                access_log=False,
                ssl_certfile=access.tls_cert,
                ssl_keyfile=access.tls_key,
                timeout_keep_alive=config.limits.keep_alive_s,
                # Never reached: by then the server has ended answers and connections itself.
                timeout_graceful_shutdown=2 * SHUTDOWN_S + ceil(END_S),
            ),
            config.limits,
            slots,
        )

    def run(self, ready: Callable[[int], None]) -> None:
        """Serve until stopped; `ready` is told the port that was bound."""
        with _listening(self._config.host, self._config.port) as listener:
            ready(listener.getsockname()[1])
            self._server.run(sockets=[listener])

    def stop(self) -> None:
        """Make `run` return soon; open answers get a few seconds."""
        self._server.should_exit = True


class _GuardedServer(uvicorn.Server):
    """uvicorn's server whose connections have limits, and which ends without cutting tasks off."""

    def __init__(
        self, config: uvicorn.Config, limits: ConnectionLimits, slots: AnswerSlots
    ) -> None:
        super().__init__(config)
        self._limits = limits
        self._slots = slots

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, with a limit on the TLS handshake as well."""
        await self.lifespan.startup()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_log_loop_error)
        tls: dict[str, Any] = {}
        if self.config.ssl is not None:
            tls = {"ssl": self.config.ssl, "ssl_handshake_timeout": self._limits.headers_s}
        self.servers = [
            await loop.create_server(self._connection, sock=listener, backlog=BACKLOG, **tls)
            for listener in sockets or ()
        ]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's; answers that take longer than the grace end first, then connections."""
        loop = asyncio.get_running_loop()
        loop.call_later(SHUTDOWN_S, self._slots.cancel_all)
        loop.call_later(SHUTDOWN_S + END_S, self._abort_connections)
        await super().shutdown(sockets)

    def _connection(self) -> GuardedConnection:
        return GuardedConnection(
            self._limits,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )

    def _abort_connections(self) -> None:
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()


def _log_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """One line when no more connections can be accepted; everything else as asyncio has it."""
    if "accept" in context.get("message", "") and isinstance(context.get("exception"), OSError):
        logger.warning("no connection can be accepted now: %s", context["exception"])
    else:
        loop.default_exception_handler(context)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise InputError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return listener

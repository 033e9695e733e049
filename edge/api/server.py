"""Serve the API: check who may reach it, bind, say where, and run until stopped."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import uvicorn

from edge.api.access import ApiAccess
from edge.api.app import make_app
from edge.client import EdgeClient
from edge.errors import InputError
from edge.generation.completion import CompletionRequest
from protos.addresses import is_loopback

BACKLOG: Final = 128
# Open answers get this long when the server is told to stop.
SHUTDOWN_S: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiConfig:
    """Where to listen (port 0: any free one), for whom, and how many requests at once."""

    host: str = "127.0.0.1"
    port: int = 8000
    concurrency: int = 1
    access: ApiAccess = field(default_factory=ApiAccess)
    default: CompletionRequest = field(default_factory=CompletionRequest)


class ApiServer:
    """One server. `run` blocks; `stop` may be called from another thread or a signal handler."""

    def __init__(self, client: EdgeClient, config: ApiConfig) -> None:
        config.access.check(config.host)
        self._config = config
        app = make_app(
            client,
            concurrency=config.concurrency,
            keys=config.access.keys(),
            loopback_only=is_loopback(config.host),
            default=config.default,
        )
        access = config.access
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                ssl_certfile=access.tls_cert,
                ssl_keyfile=access.tls_key,
                timeout_graceful_shutdown=SHUTDOWN_S,
            )
        )

    def run(self, ready: Callable[[int], None]) -> None:
        """Serve until stopped; `ready` is told the port that was bound."""
        with _listening(self._config.host, self._config.port) as listener:
            ready(listener.getsockname()[1])
            self._server.run(sockets=[listener])

    def stop(self) -> None:
        """Make `run` return soon; open answers get a few seconds."""
        self._server.should_exit = True


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

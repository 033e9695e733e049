"""A WSGI application over HTTP, on threads of its own and within limits.

Its clients connect, ask and leave, all within a second. So there are few connections at once, and
none lasts longer than `MAX_REQUEST_S`, however slowly its client sends or reads.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from cloud.errors import StartError

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

logger = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 16
MAX_REQUEST_S: Final = 10.0
_POLL_S: Final = 0.5
_JOIN_TIMEOUT_S: Final = 5.0


class HttpEndpoint:
    """Answers until `stop`. port: where it listens; 0 takes any, and `port` then says which.

    name: what it serves, for messages. Raises StartError where it cannot listen.
    """

    def __init__(self, app: WSGIApplication, host: str, port: int, *, name: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        server_class = type("_Server", (_LimitedServer,), {"address_family": family})
        try:
            self._server = server_class((host.strip("[]"), port), _QuietHandler)
        except OSError as error:
            raise StartError(f"cannot serve {name} on {host}:{port} ({error.strerror})") from error
        self._name = name
        self._server.set_app(app)
        self.port = int(self._server.server_port)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_S,), name=name, daemon=True
        )
        self._thread.start()

    def trouble(self) -> str | None:
        """Why it answers no more; None: it works."""
        return None if self._thread.is_alive() else f"the {self._name} thread died"

    def stop(self) -> None:
        """Close it."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=_JOIN_TIMEOUT_S)


class _QuietHandler(WSGIRequestHandler):
    """Logs nothing: neither requests nor clients that hang up."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _LimitedServer(WSGIServer):
    """A thread for each connection, few of them, and each for a limited time."""

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self._deadlines: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Like WSGIServer's, without looking up the host's name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name = str(self.server_address[0])
        self.server_port = self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer on a thread, or close the connection where there are too many."""
        with self._lock:
            if len(self._deadlines) >= MAX_CONNECTIONS:
                self.shutdown_request(request)
                return
            self._deadlines[request] = time.monotonic() + MAX_REQUEST_S
        request.settimeout(MAX_REQUEST_S)
        threading.Thread(
            target=self._answer, args=(request, client_address), name="http-call", daemon=True
        ).start()

    def service_actions(self) -> None:
        """Cut connections that have lasted too long; called at least every `_POLL_S`."""
        now_s = time.monotonic()
        with self._lock:
            late = [one for one, deadline_s in self._deadlines.items() if now_s > deadline_s]
        for connection in late:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # gone already
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong; a client that hangs up is no event."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            logger.warning("an HTTP request was not answered (%r)", error)

    def _answer(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            with self._lock:
                self._deadlines.pop(request, None)
            self.shutdown_request(request)

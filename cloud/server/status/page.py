"""The status page over HTTP: `GET /`, its files, and `GET /status.json`. Read-only.

There is no password, so it listens on loopback unless somebody asks for more. On loopback it
answers only to loopback host names: a web page whose own name resolves to 127.0.0.1 gets nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from cloud.server.http_endpoint import HttpEndpoint
from protos.addresses import is_loopback

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

    from cloud.server.status.snapshot import StatusBoard

# Paths with their file in `static` and its media type. Nothing else is served.
STATUS_FILES: Final = {
    "/": ("status.html", "text/html; charset=utf-8"),
    "/status.css": ("status.css", "text/css; charset=utf-8"),
    "/status.js": ("status.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
STATUS_HEADERS: Final = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
)
_TEXT: Final = "text/plain; charset=utf-8"


class StatusEndpoint(HttpEndpoint):
    """Answers until `stop`; see HttpEndpoint for the port and the errors."""

    def __init__(self, board: StatusBoard, host: str, port: int) -> None:
        self.board = board
        app = StatusApp(lambda: board.latest, loopback_only=is_loopback(host))
        super().__init__(app, host, port, name="status")


class StatusApp:
    """The WSGI application. snapshot: gives a finished object, see StatusBoard."""

    def __init__(self, snapshot: Callable[[], dict[str, Any]], *, loopback_only: bool) -> None:
        self._snapshot = snapshot
        self._loopback_only = loopback_only
        static = files(__package__) / "static"
        self._files = {
            path: ((static / name).read_bytes(), media)
            for path, (name, media) in STATUS_FILES.items()
        }

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """One answer. Whatever is not a GET of a known path gets one line that says so."""
        status, media, body = self._answer(environ)
        headers = [("Content-Type", media), ("Content-Length", str(len(body))), *STATUS_HEADERS]
        if status.startswith("405"):
            headers.append(("Allow", "GET"))
        start_response(status, headers)
        return [body]

    def _answer(self, environ: WSGIEnvironment) -> tuple[str, str, bytes]:
        if self._loopback_only and not _names_loopback(environ.get("HTTP_HOST")):
            words = b"this page answers to localhost and loopback addresses only\n"
            return "403 Forbidden", _TEXT, words
        if environ.get("REQUEST_METHOD") != "GET":
            return "405 Method Not Allowed", _TEXT, b"this page is read-only: use GET\n"
        path = environ.get("PATH_INFO") or "/"
        if path == "/status.json":
            body = json.dumps(self._snapshot()).encode()
            return "200 OK", "application/json", body
        if path in self._files:
            content, media = self._files[path]
            return "200 OK", media, content
        return "404 Not Found", _TEXT, b"only / and /status.json are here\n"


def _names_loopback(host: str | None) -> bool:
    try:
        name = urlsplit(f"//{host or ''}").hostname
    except ValueError:
        return False
    return name is not None and is_loopback(name)

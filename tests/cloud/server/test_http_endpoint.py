"""The small HTTP endpoint behind the metrics and the status page: its limits, and what it logs."""

from __future__ import annotations

import http.client
import logging
import socket
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import pytest

from cloud.server import http_endpoint
from cloud.server.http_endpoint import MAX_CONNECTIONS, HttpEndpoint
from tests.waiting import comes_true

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


@pytest.fixture
def endpoint() -> Iterator[HttpEndpoint]:
    made = HttpEndpoint(app, "127.0.0.1", 0, name="test")
    yield made
    made.stop()


def status_of(endpoint: HttpEndpoint) -> int | None:
    """Of one GET; None where the connection is closed without an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=10)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status
    except ConnectionError:
        return None
    finally:
        connection.close()


def test_connections_beyond_the_limit_are_closed_and_the_others_stay(
    endpoint: HttpEndpoint,
) -> None:
    idle = [socket.create_connection(("127.0.0.1", endpoint.port)) for _ in range(MAX_CONNECTIONS)]
    assert comes_true(lambda: status_of(endpoint) is None)
    for connection in idle:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert connection.makefile("rb").readline().split()[1] == b"200"
        connection.close()
    assert comes_true(lambda: status_of(endpoint) == 200)


def test_a_slow_client_is_cut(endpoint: HttpEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_endpoint, "MAX_REQUEST_S", 0.1)
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=10) as slow:
        slow.sendall(b"GET / HTTP/1.0\r\nX: ")
        assert slow.recv(1) == b""


@pytest.mark.parametrize(
    ("error", "said"), [(ValueError("ours"), ["ValueError('ours')"]), (ConnectionResetError(), [])]
)
def test_our_own_faults_are_logged_and_hang_ups_are_not(
    endpoint: HttpEndpoint,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    said: list[str],
) -> None:
    def fail(handler: object) -> None:
        raise error

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(http_endpoint._QuietHandler, "handle", fail)
        assert status_of(endpoint) is None
    assert status_of(endpoint) == 200
    records = [one for one in caplog.records if one.name == http_endpoint.__name__]
    assert [repr(one.args[0]) for one in records if isinstance(one.args, tuple)] == said

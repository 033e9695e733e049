"""Connections: every wait for a client ends, and what cannot be read gets an answer."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from unittest.mock import patch

import pytest

from edge.api import server
from edge.api.connection import ConnectionLimits
from edge.api.server import ApiConfig
from edge.client import EdgeClient
from tests.conftest import ModelBench
from tests.edge.api.running import running_api
from tests.hostile.raw_http import COMPLETIONS, connect, exchange, health, read_answer, request

SHORT = ConnectionLimits(
    max_connections=8, headers_s=0.4, body_s=0.4, drain_s=0.4, write_s=0.4, keep_alive_s=1
)
# A limit ends within itself and a few looks. The rest is for a busy machine.
WITHIN_S = 15.0
CHUNKED = {"Content-Length": "", "Transfer-Encoding": "chunked"}


@pytest.fixture(scope="module")
def address(bench: ModelBench) -> Iterator[str]:
    """An API whose model lies wholly on the edge, and whose socket takes few bytes on their way."""

    bind = server._listening

    def listening(host: str, port: int) -> socket.socket:
        listener = bind(host, port)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        return listener

    bundle = bench.edge_bundle(bench.num_layers)
    with (
        patch.object(server, "_listening", listening),
        EdgeClient(bundle) as client,
        running_api(client, ApiConfig(port=0, limits=SHORT)) as url,
    ):
        yield url.removeprefix("http://")


def send_until_cut_off(connection: socket.socket, block: bytes, *, every_s: float) -> None:
    """Send `block` again and again. Raises a ConnectionError when the server has had enough."""
    deadline_s = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline_s:
        connection.sendall(block)
        time.sleep(every_s)


def test_a_header_that_comes_byte_by_byte_is_a_408(address: str) -> None:
    with connect(address) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nX: ")
        for _ in range(4):
            connection.sendall(b"x")
            time.sleep(0.05)
        answer = read_answer(connection)
        assert (answer.status, answer.error()["code"]) == (408, "request_timeout")
        assert connection.recv(1) == b""


def test_a_body_that_comes_byte_by_byte_is_a_408(address: str) -> None:
    with connect(address) as connection:
        connection.sendall(request(COMPLETIONS, headers=CHUNKED) + b"1\r\n{\r\n")
        answer = read_answer(connection)
        assert (answer.status, answer.error()["code"]) == (408, "request_timeout")
        assert connection.recv(1) == b""


def test_a_connection_that_says_nothing_is_closed(address: str) -> None:
    with connect(address, WITHIN_S) as connection:
        assert connection.recv(1) == b""


def test_the_wait_for_a_next_request_ends(address: str) -> None:
    with connect(address, WITHIN_S) as connection:
        connection.sendall(request("/health", method="GET"))
        assert read_answer(connection, "GET").status == 200
        assert connection.recv(1) == b""


def test_a_connection_that_asks_on_and_on_stays(address: str) -> None:
    with connect(address) as connection:
        until_s = time.monotonic() + 5 * SHORT.headers_s
        while time.monotonic() < until_s:
            connection.sendall(request("/health", method="GET"))
            assert read_answer(connection, "GET").status == 200
            time.sleep(0.05)


def test_the_rest_of_a_body_that_nobody_wants_is_read_only_for_a_while(address: str) -> None:
    headers = {**CHUNKED, "Content-Type": "text/plain"}
    with connect(address) as connection:
        connection.sendall(request(COMPLETIONS, headers=headers) + b"1\r\n{\r\n")
        assert read_answer(connection).status == 415
        with pytest.raises(ConnectionError):
            send_until_cut_off(connection, b"1\r\nx\r\n", every_s=0.05)


def test_a_client_that_reads_nothing_is_cut_off(address: str) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.settimeout(WITHIN_S)
        host, _, port = address.rpartition(":")
        connection.connect((host, int(port)))
        with pytest.raises(ConnectionError):
            send_until_cut_off(connection, 100 * request("/v1/models", method="GET"), every_s=0.0)
    assert health(address)["status"] == "ok"


def test_beyond_the_most_connections_a_client_is_refused(address: str) -> None:
    idle = [connect(address) for _ in range(SHORT.max_connections)]
    try:
        with connect(address) as one_more:
            answer = read_answer(one_more)
        assert (answer.status, answer.error()["code"]) == (429, "too_many_connections")
        assert int(answer.headers["retry-after"]) >= 1
    finally:
        for connection in idle:
            connection.close()


def test_garbage_after_a_request_does_not_spoil_its_answer(address: str) -> None:
    body = json.dumps({"model": "model", "prompt": "a", "max_tokens": 2}).encode()
    with connect(address) as connection:
        connection.sendall(request(COMPLETIONS, body) + b"\x00garbage\r\n\r\n")
        assert read_answer(connection).status == 200
        answer = read_answer(connection)
    assert answer.status == 400
    answer.error()


def test_an_upgrade_is_answered_as_any_other_request(address: str) -> None:
    headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
    assert exchange(address, request("/health", method="GET", headers=headers)).status == 200


def test_no_client_makes_the_log_longer(address: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING")
    exchange(address, b"garbage\r\n\r\n")
    exchange(address, request("/health", method="GET", headers={"Upgrade": "websocket"}))
    exchange(address, request("/health", headers=CHUNKED) + b"zz\r\n")
    with connect(address) as connection:
        connection.sendall(request(COMPLETIONS, headers=CHUNKED) + b"1\r\n{\r\n")
    with connect(address) as connection:
        connection.sendall(request(COMPLETIONS, headers=CHUNKED) + b"1\r\n{\r\nzz\r\n")
        assert read_answer(connection).status == 400
    health(address)
    assert caplog.records == []

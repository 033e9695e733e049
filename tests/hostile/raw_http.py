"""HTTP/1.1 in bytes: requests that no client library would send, and their answers."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One HTTP answer. headers: names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def error(self) -> dict[str, Any]:
        """The error object; fails unless it has OpenAI's shape."""
        assert self.headers["content-type"].startswith("application/json"), self
        error = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert error["message"]
        return dict(error)


def request(
    path: str,
    body: bytes = b"",
    *,
    method: str = "POST",
    headers: dict[str, str] | None = None,
) -> bytes:
    """The bytes of one request; `headers` replace or, when empty, remove the usual ones."""
    usual = {
        "Host": "localhost",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **(headers or {}),
    }
    lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in usual.items() if v)]
    return "\r\n".join(lines).encode("utf-8") + b"\r\n\r\n" + body


def chunked(blocks: list[bytes]) -> bytes:
    """A body of unknown length."""
    return b"".join(b"%x\r\n%s\r\n" % (len(block), block) for block in blocks) + b"0\r\n\r\n"


def connect(address: str, timeout_s: float = 30.0) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=timeout_s)


def read_answer(connection: socket.socket, method: str = "POST") -> Answer:
    """The next answer on the connection, and not a byte of the one after it."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        if not byte:
            raise ConnectionError(f"the connection ended after {head!r}")
        head += byte
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    pairs = [line.partition(":") for line in lines]
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    left = 0 if method == "HEAD" else int(headers["content-length"])
    body = b""
    while len(body) < left:
        block = connection.recv(left - len(body))
        if not block:
            raise ConnectionError(f"the connection ended after {head + body!r}")
        body += block
    return Answer(status=int(first.split()[1]), headers=headers, body=body)


def exchange(address: str, data: bytes, method: str = "POST") -> Answer:
    """Send `data` on a connection of its own and read one answer.

    The server may answer, and end the connection, before it has read everything.
    """
    with connect(address) as connection:
        with suppress(ConnectionError):
            connection.sendall(data)
        return read_answer(connection, method)


def post(address: str, path: str, body: Any) -> Answer:
    """The answer to a JSON body."""
    return exchange(address, request(path, json.dumps(body).encode()))


def health(address: str) -> dict[str, Any]:
    answer = exchange(address, request("/health", method="GET"), "GET")
    assert answer.status == 200
    return dict(json.loads(answer.body))

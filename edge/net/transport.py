"""What a generation needs of the network: open a stream, send frames, receive answers.

`edge.net.grpc_transport` implements these interfaces; tests put a scripted one in its place. All
calls block, and each generation has one thread: the one concurrency style of this package.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from edge.net.route import Route
from protos.messages import CloudMessage, Frame, Open


class Received(NamedTuple):
    """One message from the cloud, its size on the wire, and when it had arrived.

    `at_s` is read on the transport's monotonic clock as soon as the message is parsed.
    """

    message: CloudMessage
    num_bytes: int
    at_s: float


class Stream(Protocol):
    """One open generation. Every method may raise a TransportError."""

    def send(self, frame: Frame) -> int:
        """Queue a frame and return its size on the wire in bytes. Does not wait for the link."""
        ...

    def receive(self, timeout_s: float) -> Received:
        """Wait for the next message; DeadlineError when none comes within `timeout_s`."""
        ...

    def poll(self) -> Received | None:
        """The next message if one has come already; None if not."""
        ...

    def hang_up(self) -> None:
        """Send a Close without waiting, from any thread; `receive` then raises. Never raises."""
        ...

    def close(self) -> None:
        """Send a Close (the cloud frees its cache) and end the stream. Never raises."""
        ...

    def abort(self) -> None:
        """End the stream without a Close. Never raises."""
        ...


class Transport(Protocol):
    """One server's address, ready to open streams."""

    @property
    def address(self) -> str:
        """HOST:PORT, for messages."""
        ...

    def open(self, request: Open, timeout_s: float, route: Route | None = None) -> Stream:
        """Open a generation and send `request`; the `Opened` answer is the first received.

        route: goes with the stream, and notes the server that its answers name.
        """
        ...

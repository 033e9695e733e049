"""A client that speaks HTTP/2 frame by frame, so that it can be as rude as the protocol allows."""

from __future__ import annotations

import socket
import struct
import time
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings

from protos import wire
from protos.messages import EdgeMessage


class RawConnection:
    """One connection. window: how much the server may send on each stream unasked. source: the
    address that it comes from."""

    def __init__(self, port: int, *, window: int = 65_535, source: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection(
            ("127.0.0.1", port), timeout=20, source_address=(source, 0)
        )
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.events: list[Any] = []
        self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def call(self, path: str) -> int:
        """Begin a call; returns its stream."""
        stream = int(self.h2.get_next_available_stream_id())
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "hostile"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ]
        self.h2.send_headers(stream, headers)
        self.flush()
        return stream

    def say(self, stream: int, message: EdgeMessage) -> None:
        self.send(stream, wire.encode_edge(message))

    def send(self, stream: int, data: bytes) -> None:
        """One gRPC message, as fast as the server's windows allow."""
        left = struct.pack(">BI", 0, len(data)) + data
        while left:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room == 0:
                self.read(1.0)
                continue
            self.h2.send_data(stream, left[:room])
            left = left[room:]
            self.flush()

    def read(self, wait_s: float) -> None:
        """Take in what comes within `wait_s`, without ever giving the server more window."""
        self.socket.settimeout(wait_s)
        try:
            data = self.socket.recv(1 << 16)
        except TimeoutError:
            return
        if not data:
            raise ConnectionError("the server closed the connection")
        self.events += self.h2.receive_data(data)
        self.flush()

    def ended(self, stream: int, within_s: float) -> bool:
        """Whether the server ends or resets the stream in time."""
        ends_s = time.monotonic() + within_s
        kinds = (h2.events.StreamReset, h2.events.StreamEnded)
        while time.monotonic() < ends_s:
            if any(isinstance(one, kinds) and one.stream_id == stream for one in self.events):
                return True
            self.read(0.2)
        return False

    def close(self) -> None:
        self.socket.close()

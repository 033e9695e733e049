"""Messages between rank 0 and one follower, over a socket pair that no other process has.

A message is a header (JSON) and bytes. Each end notices the other's death as the end of the stream.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

_LENGTHS: Final = struct.Struct("<IQ")  # of the header and of the bytes


class LinkMessage(NamedTuple):
    """What came: its kind and its fields are in the header."""

    header: dict[str, Any]
    data: bytearray

    @property
    def kind(self) -> str:
        """What the message is about."""
        return str(self.header["kind"])


class FollowerLink:
    """One end. One thread sends and one thread receives."""

    def __init__(self, end: socket.socket, *, send_timeout_s: float | None = None) -> None:
        """send_timeout_s: how long the other end may leave a message unread."""
        self._end = end
        end.settimeout(send_timeout_s)

    def send(self, kind: str, data: Sequence[memoryview] = (), **fields: Any) -> None:
        """Send one message. OSError where the other end is gone, or does not read in time."""
        header = json.dumps({"kind": kind, **fields}).encode()
        size = sum(part.nbytes for part in data)
        self._end.sendall(_LENGTHS.pack(len(header), size) + header)
        for part in data:
            self._end.sendall(part)

    def receive(self) -> LinkMessage:
        """The next message, whenever it comes. EOFError where the other end is gone."""
        header_size, data_size = _LENGTHS.unpack(self._read(_LENGTHS.size))
        header = json.loads(self._read(header_size))
        return LinkMessage(header, self._read(data_size))

    def close(self) -> None:
        """Tell the other end that this one is gone. A thread that receives gets EOFError."""
        with contextlib.suppress(OSError):  # the other end was gone first
            self._end.shutdown(socket.SHUT_RDWR)
        self._end.close()

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        view, filled = memoryview(data), 0
        while filled < size:
            try:
                count = self._end.recv_into(view[filled:])
            except TimeoutError:  # the limit is for sending
                continue
            except OSError as error:
                raise EOFError from error
            if count == 0:
                raise EOFError
            filled += count
        return data

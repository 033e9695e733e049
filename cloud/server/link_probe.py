"""The server's side of the link probe: answer each message with as many bytes as it asks for.

A stranger may call it, so it is bounded. The wire bounds one message and this module bounds one
call: so no call keeps the server's uplink busy for long.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from protos import wire
from protos.errors import RemoteWireError
from protos.messages import ProbeChunk

MAX_CALL_BYTES: Final = 256 << 20


async def answer_probe(requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Take serialized `ProbeChunk`s and yield serialized answers, in order.

    Raises RemoteWireError for a malformed or oversized message, and once the call has moved
    `MAX_CALL_BYTES`.
    """
    moved = 0
    async for data in requests:
        chunk = wire.decode_probe(data)
        moved += len(data) + chunk.want_bytes
        if moved > MAX_CALL_BYTES:
            raise RemoteWireError(f"one probe may move {MAX_CALL_BYTES} bytes at most")
        yield wire.encode_probe(ProbeChunk(sequence=chunk.sequence, padding_bytes=chunk.want_bytes))

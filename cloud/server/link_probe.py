"""The server's side of the link probe: answer each message with as many bytes as it asks for.

Anybody may call it who may call anything, so it is bounded. The wire bounds one message. This
module bounds one call, in bytes and in time, and each wait in it. `cloud.server.service` bounds how
many calls there are at once: so they keep neither memory nor the server's uplink.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from cloud.errors import IdleError, UnreadError
from cloud.server.byte_budget import ByteBudget
from cloud.server.timers import within
from protos import wire
from protos.errors import RemoteWireError
from protos.messages import ProbeChunk

MAX_CALL_BYTES: Final = 256 << 20
# What a message counts for at least: handling one takes time, however small it is.
MIN_MESSAGE_BYTES: Final = 2 << 10
MAX_CALL_S: Final = 120.0
MAX_CALLS: Final = 8
MAX_CALLS_PER_PEER: Final = 2
# A probe's messages follow one another without a pause of its own, even on a slow link.
MAX_PAUSE_S: Final = 20.0


async def answer_probe(requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Take serialized `ProbeChunk`s and yield serialized answers, in order.

    Raises RemoteWireError for a malformed or oversized message, and once the call has moved
    `MAX_CALL_BYTES`.
    """
    moved = 0
    async for data in requests:
        chunk = wire.decode_probe(data)
        moved += max(MIN_MESSAGE_BYTES, len(data) + chunk.want_bytes)
        if moved > MAX_CALL_BYTES:
            raise RemoteWireError(f"one probe may move {MAX_CALL_BYTES} bytes at most")
        yield wire.encode_probe(ProbeChunk(sequence=chunk.sequence, padding_bytes=chunk.want_bytes))


async def answer_call(context: Any, budget: ByteBudget) -> None:
    """Answer one call of `Probe`, a gRPC call of the server's side. `budget` counts its bytes.

    Raises RemoteWireError, and IdleError where the client neither sends nor reads for
    `MAX_PAUSE_S`, or the call has lasted `MAX_CALL_S`.
    """
    ends_s = asyncio.get_running_loop().time() + MAX_CALL_S

    def left_s() -> float:
        return min(MAX_PAUSE_S, ends_s - asyncio.get_running_loop().time())

    async def requests() -> AsyncIterator[bytes]:
        while True:
            idle = IdleError("the link probe sent nothing, or took too long")
            data = await within(left_s(), context.read(), idle)
            if not isinstance(data, bytes):
                return
            budget.passed_bytes += len(data)
            yield data

    async for answer in answer_probe(requests()):
        budget.passed_bytes += len(answer)
        unread = UnreadError("the link probe read no answer, or took too long")
        await within(left_s(), context.write(answer), unread)

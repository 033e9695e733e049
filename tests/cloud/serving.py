"""An in-process server on port 0, a raw gRPC client, and frames of a tiny model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from cloud.server.process import Server, ServerConfig, serving
from codec.ladder import Ladder
from decoding.params import SamplingParams
from protos import wire
from protos.messages import (
    CloudMessage,
    EdgeMessage,
    Frame,
    Open,
    Opened,
    Result,
)
from tests.cloud.tiny_bundle import MODEL_SHA256, WholeModelFront, make_bundle

SPLIT = 2
WIDTH = 64
LADDER = Ladder.lossless(WIDTH)
PROMPT = [5, 99, 17, 200, 31, 7, 180, 44]
# 2 layers, K and V of 2 heads x 16 float32, 64 tokens.
SESSION_KV_BYTES = 2 * 2 * 2 * 16 * 4 * 64


class Served:
    """The bundle on disk and the whole model it was made of."""

    def __init__(self, root: Path) -> None:
        self.model = make_bundle(root)
        self.config = ServerConfig(
            bundle=root / "bundle", port=0, kv_memory_bytes=4 << 20, max_sessions=8, max_wait_s=0.5
        )
        self.front = WholeModelFront(self.model, SPLIT)


def open_message(**changes: Any) -> Open:
    message = Open(
        session_id="s1",
        model_sha256=MODEL_SHA256,
        split=SPLIT,
        hidden_size=WIDTH,
        codec_tables_sha256=LADDER.tables_sha256,
        max_tokens=64,
        sampling=SamplingParams(),
    )
    return replace(message, **changes)


class RawStream:
    """One Generate call, message by message."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Any = None) -> None:
        self.call: Any = calls_of(channel).stream_stream(wire.GENERATE_PATH)(metadata=metadata)

    async def send(self, message: EdgeMessage) -> None:
        await self.call.write(wire.encode_edge(message))

    async def receive(self) -> CloudMessage:
        data = await asyncio.wait_for(self.call.read(), 60)
        if not isinstance(data, bytes):  # grpc.aio.EOF
            await self.call.wait_for_connection()  # raises the status the stream ended with
            raise AssertionError(f"the stream ended: {await self.call.code()}")
        return wire.decode_cloud(data)

    async def open(self, **changes: Any) -> RawStream:
        await self.send(open_message(**changes))
        assert isinstance(await self.receive(), Opened)
        return self

    async def ask(self, frame: Frame) -> Result:
        await self.send(frame)
        result = await self.receive()
        assert isinstance(result, Result)
        return result

    async def refused(self) -> tuple[grpc.StatusCode, str]:
        """The status and the reason that the stream ends with."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.receive()
        return caught.value.code(), caught.value.details() or ""


@asynccontextmanager
async def connected(config: ServerConfig) -> AsyncIterator[tuple[Server, grpc.aio.Channel]]:
    async with serving(config) as server, channel_to(server.port) as channel:
        yield server, channel


def calls_of(channel: grpc.aio.Channel) -> Any:
    """The channel without its types: grpc-stubs wants arguments that grpc.aio does without."""
    return channel


def channel_to(port: int) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}")


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 280))


def num_waiting_is(server: Server, count: int) -> bool:
    return server.admission.num_waiting == count


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(4000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("did not come true within 40 s")


def frame_of(served: Served, sequence: int, tokens: list[int], first: int, **changes: Any) -> Frame:
    rows = served.front.rows(tokens, first)
    ids = tokens[first:]
    frame = Frame(
        sequence=sequence,
        first_position=first,
        token_ids=tuple(ids),
        hidden=LADDER.encode("lossless", rows, np.asarray(ids, dtype=np.int64)),
    )
    return replace(frame, **changes)


async def generate(served: Served, stream: RawStream, prompt: list[int], count: int) -> list[int]:
    """Prefill in two chunks, then plain decode steps; returns the new tokens."""
    half = len(prompt) // 2
    chunk = frame_of(served, 0, prompt[:half], 0, want_token=False)
    assert (await stream.ask(chunk)).token_ids == ()
    tokens = list(prompt)
    first, sequence = half, 1
    while len(tokens) < len(prompt) + count:
        result = await stream.ask(frame_of(served, sequence, tokens, first))
        assert result.num_tokens == len(tokens)
        first, sequence = len(tokens), sequence + 1
        tokens += result.token_ids
    return tokens[len(prompt) :]

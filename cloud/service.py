"""The gRPC service: streams in, streams out. It moves messages and never computes.

    Generate   one session: reads frames into the model thread, writes results as they come
    Describe   what is served, and how full it is
    Probe      echo, for measuring the link

A stream that ends in whatever way (close, cancel, disconnect, error) closes its session, and
the model thread frees the KV cache before its next batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import grpc

from cloud.admission import Admission
from cloud.engine_loop import Client, EngineLoop
from cloud.errors import (
    BadFrameError,
    CapacityError,
    CloudError,
    IdleError,
    MismatchError,
    ReplacedError,
    status_of,
)
from cloud.probe import answer_probe
from protos import wire
from protos.errors import RemoteWireError, VersionError
from protos.messages import Close, Closed, CloudMessage, Frame, Open, Opened, Result

logger = logging.getLogger(__name__)

RETRY_AFTER_KEY: Final = "retry-after-s"

Context = grpc.aio.ServicerContext[bytes, bytes]


class _Closing:
    """What the reader says when the client asked to close, or sends no more."""


@dataclass(slots=True, eq=False)
class _Stream:
    """One open stream: the session behind it, what is to be written, what is outstanding."""

    client: Client
    outbox: asyncio.Queue[Result | CloudError | _Closing]
    room: asyncio.Semaphore  # frames the client may still have on the way
    outstanding: int = 0


class InferenceService:
    """Handlers of splitpoint.v1.SplitInference on raw message bytes."""

    def __init__(
        self,
        admission: Admission,
        engine_loop: EngineLoop,
        *,
        idle_ttl_s: float = 300.0,
        max_frames_in_flight: int = 16,
    ) -> None:
        self._admission = admission
        self._engine_loop = engine_loop
        self._idle_ttl_s = idle_ttl_s
        self._max_frames_in_flight = max_frames_in_flight
        self._streams: dict[str, _Stream] = {}

    def handler(self) -> grpc.GenericRpcHandler[bytes, bytes]:
        """What `server.add_generic_rpc_handlers` takes."""
        methods: dict[str, Any] = {
            "Generate": grpc.stream_stream_rpc_method_handler(self.generate),
            "Describe": grpc.unary_unary_rpc_method_handler(self.describe),
            "Probe": grpc.stream_stream_rpc_method_handler(self.probe),
        }
        return grpc.method_handlers_generic_handler(wire.SERVICE_NAME, methods)

    async def generate(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """One session, from Open to the end of the stream."""
        try:
            await self._session(requests, context)
        except CloudError as error:
            await _abort(context, error)

    async def describe(self, request: bytes, context: Context) -> bytes:
        return wire.encode_description(self._admission.describe())

    async def probe(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        try:
            async for answer in answer_probe(requests):
                yield answer
        except RemoteWireError as error:
            await _abort(context, BadFrameError(str(error)))

    async def _session(self, requests: AsyncIterator[bytes], context: Context) -> None:
        message = _decode(await self._read(context))
        if not isinstance(message, Open):
            raise BadFrameError("a stream begins with Open")
        session = self._admission.admit(message)
        event_loop = asyncio.get_running_loop()
        outbox: asyncio.Queue[Result | CloudError | _Closing] = asyncio.Queue()

        def deliver(answer: Result | CloudError) -> None:
            # From the model thread. The event loop may be gone when the server is stopping.
            with contextlib.suppress(RuntimeError):
                event_loop.call_soon_threadsafe(outbox.put_nowait, answer)

        stream = _Stream(
            client=Client(session=session, deliver=deliver),
            outbox=outbox,
            room=asyncio.Semaphore(self._max_frames_in_flight),
        )
        self._replace(message.session_id, stream)
        reader: asyncio.Task[None] | None = None
        try:
            opened = Opened(
                session_id=message.session_id, max_frame_tokens=self._admission.max_frame_tokens
            )
            await _write(context, opened)
            reader = asyncio.create_task(self._read_frames(context, stream))
            await self._write_results(context, stream)
        finally:
            if reader is not None:
                reader.cancel()
            if self._streams.get(message.session_id) is stream:
                del self._streams[message.session_id]
            freed = self._engine_loop.close(stream.client)
            self._admission.leave()
        # Only a stream that ends in peace waits for its memory to be free and says so.
        await asyncio.wrap_future(freed)
        await _write(context, Closed())

    def _replace(self, session_id: str, stream: _Stream) -> None:
        """A client that reconnects before its dead stream was noticed takes its place."""
        older = self._streams.pop(session_id, None)
        if older is not None:
            older.outbox.put_nowait(ReplacedError("another stream opened this session again"))
        self._streams[session_id] = stream

    async def _read_frames(self, context: Context, stream: _Stream) -> None:
        """Frames into the model thread, no more than fit; its last word goes to the outbox."""
        try:
            while True:
                data = await self._read(context)
                if data is None:
                    break
                message = _decode(data)
                if isinstance(message, Close):
                    stream.outstanding = 0
                    break
                if not isinstance(message, Frame):
                    raise BadFrameError("a second Open in one stream")
                await stream.room.acquire()
                stream.outstanding += 1
                self._engine_loop.submit(stream.client, message)
            stream.outbox.put_nowait(_Closing())
        except CloudError as error:
            stream.outbox.put_nowait(error)

    async def _write_results(self, context: Context, stream: _Stream) -> None:
        """Answers to the client until it has closed and has every answer it waits for."""
        closing = False
        while not (closing and stream.outstanding <= 0):
            answer = await stream.outbox.get()
            if isinstance(answer, CloudError):
                raise answer
            if isinstance(answer, _Closing):
                closing = True
                continue
            stream.outstanding -= 1
            stream.room.release()
            await _write(context, answer)

    async def _read(self, context: Context) -> bytes | None:
        """The next message, None at the end. A silent client is evicted after the idle TTL."""
        try:
            data = await asyncio.wait_for(context.read(), self._idle_ttl_s)
        except asyncio.TimeoutError:
            raise IdleError(f"silent for {self._idle_ttl_s:g} s") from None
        return data if isinstance(data, bytes) else None


def _decode(data: bytes | None) -> Open | Frame | Close:
    if data is None:
        raise BadFrameError("the stream ended before Open")
    try:
        return wire.decode_edge(data)
    except VersionError as error:
        raise MismatchError(str(error)) from error
    except RemoteWireError as error:
        raise BadFrameError(str(error)) from error


async def _write(context: Context, message: CloudMessage) -> None:
    await context.write(wire.encode_cloud(message))


async def _abort(context: Context, error: CloudError) -> None:
    logger.info("stream ended: %s: %s", type(error).__name__, error)
    trailers: tuple[tuple[str, str], ...] = ()
    if isinstance(error, CapacityError):
        trailers = ((RETRY_AFTER_KEY, f"{error.retry_after_s:g}"),)
    await context.abort(status_of(error), str(error)[: wire.MAX_DETAIL_CHARS], trailers)

"""One open stream: frames in, answers out, the client's pace and the tenant's rate kept.

Two coroutines share it. `read_frames` hands frames to the model thread, no more than
`max_frames_in_flight` at a time and no faster than the tenant may; `write_answers` sends what
comes back. What the reader has to say at its end goes through the same outbox, so errors and
the end arrive in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import grpc

from cloud.engine_loop import Client, EngineLoop
from cloud.errors import BadFrameError, CloudError, EngineError, IdleError, MismatchError
from cloud.metrics import Metrics
from protos import wire
from protos.errors import RemoteWireError, VersionError
from protos.messages import Close, CloudMessage, Frame, Open, Result

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[bytes, bytes]


class Pace(Protocol):
    """How long a frame of `num_rows` rows has to wait for its tenant's rate."""

    def __call__(self, num_rows: int) -> float: ...


class _Closing:
    """What the reader says when the client asked to close, or sends no more."""


class Stream:
    """See the module's docstring. Lives on the event loop's thread."""

    def __init__(
        self,
        context: Context,
        *,
        metrics: Metrics,
        pace: Pace,
        max_hidden_bytes: Callable[[int], int],
        idle_ttl_s: float,
        max_frames_in_flight: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.opened_s = clock()
        self.num_frames = 0
        self.num_tokens = 0
        self.said_close = False  # the client's own word, not the end of a stream that broke
        self._context = context
        self._metrics = metrics
        self._pace = pace
        self._max_hidden_bytes = max_hidden_bytes  # of a frame with so many rows
        self._idle_ttl_s = idle_ttl_s
        self._clock = clock
        self._outbox: asyncio.Queue[Result | CloudError | _Closing] = asyncio.Queue()
        self._room = asyncio.Semaphore(max_frames_in_flight)
        self._outstanding: Counter[int] = Counter()  # answers owed, by sequence number
        self._last_token_s: float | None = None

    def deliver(self) -> Callable[[Result | CloudError], None]:
        """For the model thread: put an answer into the outbox. Never blocks."""
        event_loop = asyncio.get_running_loop()

        def put(answer: Result | CloudError) -> None:
            # The event loop may be gone when the server is stopping.
            with contextlib.suppress(RuntimeError):
                event_loop.call_soon_threadsafe(self._outbox.put_nowait, answer)

        return put

    def end(self, error: CloudError) -> None:
        """End the stream with this error, after what is in the outbox already."""
        self._outbox.put_nowait(error)

    async def read_open(self) -> Open:
        """The first message. Raises BadFrameError when it is another."""
        message = _decode(await self._read())
        if not isinstance(message, Open):
            raise BadFrameError("a stream begins with Open")
        return message

    async def read_frames(self, client: Client, engine_loop: EngineLoop) -> None:
        """Frames into the model thread, until the client's last word."""
        try:
            while (data := await self._read()) is not None:
                message = _decode(data)
                if isinstance(message, Close):
                    self.said_close = True
                    self._outstanding.clear()
                    break
                if not isinstance(message, Frame):
                    raise BadFrameError("a second Open in one stream")
                most = self._max_hidden_bytes(len(message.token_ids))
                if len(message.hidden) > most:  # before it waits with others for the model
                    raise BadFrameError(
                        f"a frame of {len(message.hidden)} bytes, its rows need {most} at most"
                    )
                await self._room.acquire()
                self._metrics.rows.inc(len(message.token_ids))
                if (wait_s := self._pace(len(message.token_ids))) > 0:
                    await asyncio.sleep(wait_s)
                self._outstanding[message.sequence] += 1
                self.num_frames += 1
                engine_loop.submit(client, message)
            self._outbox.put_nowait(_Closing())
        except CloudError as error:
            self._outbox.put_nowait(error)
        except Exception as error:  # else the writer would wait for ever, and hold the session
            logger.exception("reading a stream failed")
            self._outbox.put_nowait(EngineError(f"reading the stream failed ({error})"))

    async def write_answers(self) -> None:
        """Answers to the client until it has closed and has every answer it waits for.

        Raises the CloudError that the stream ends with.
        """
        closing = False
        while not (closing and not self._outstanding):
            answer = await self._outbox.get()
            if isinstance(answer, CloudError):
                raise answer
            if isinstance(answer, _Closing):
                closing = True
                continue
            if not self._outstanding[answer.sequence]:
                # Of a stream that broke: this client asks for it again, and gets that answer.
                continue
            self._outstanding -= Counter([answer.sequence])
            self._room.release()
            await self.write(answer)
            self._count(answer)

    async def write(self, message: CloudMessage) -> None:
        data = wire.encode_cloud(message)
        self._metrics.bytes.labels(direction="down").inc(len(data))
        await self._context.write(data)

    def _count(self, answer: Result) -> None:
        if not answer.token_ids:
            return
        now_s = self._clock()
        if self._last_token_s is None:
            self._metrics.ttft_s.observe(now_s - self.opened_s)
        else:
            self._metrics.tbt_s.observe(now_s - self._last_token_s)
        self._last_token_s = now_s
        self.num_tokens += len(answer.token_ids)
        self._metrics.tokens.inc(len(answer.token_ids))

    async def _read(self) -> bytes | None:
        """The next message, None at the end. A silent client is evicted after the idle TTL."""
        try:
            data: Any = await asyncio.wait_for(self._context.read(), self._idle_ttl_s)
        except asyncio.TimeoutError:
            raise IdleError(f"silent for {self._idle_ttl_s:g} s") from None
        if not isinstance(data, bytes):
            return None
        self._metrics.bytes.labels(direction="up").inc(len(data))
        return data


def _decode(data: bytes | None) -> Open | Frame | Close:
    if data is None:
        raise BadFrameError("the stream ended before Open")
    try:
        return wire.decode_edge(data)
    except VersionError as error:
        raise MismatchError(str(error)) from error
    except RemoteWireError as error:
        raise BadFrameError(str(error)) from error

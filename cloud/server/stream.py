"""One open stream: frames in, answers out, the client's pace and the tenant's rate kept.

Two coroutines share it. `read_frames` hands frames to the model thread, no more than
`max_frames_in_flight` at a time and no faster than the tenant may; `write_answers` sends what
comes back. What the reader has to say at its end goes through the same outbox, so errors and
the end arrive in order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeAlias

import grpc

from cloud.engine.loop import Client, EngineLoop
from cloud.errors import BadFrameError, CloudError, EngineError, IdleError, MismatchError
from cloud.server.mailbox import Mailbox
from cloud.server.metrics import Metrics
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


Answer: TypeAlias = Result | CloudError | _Closing

# For a stream that never says what it wants, however many of them there are.
OPEN_TIMEOUT_S: Final = 10.0


class Stream:
    """See the module's docstring. Lives on the event loop's thread."""

    def __init__(
        self,
        context: Context,
        *,
        metrics: Metrics,
        pace: Pace,
        max_hidden_bytes: Callable[[int], int],
        mailbox: Mailbox[Answer],
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
        self._mailbox = mailbox
        self._outbox: asyncio.Queue[Answer] = asyncio.Queue()
        self._room = asyncio.Semaphore(max_frames_in_flight)
        self._outstanding: dict[int, int] = {}  # answers owed, by sequence number
        self._silent_since_s: float | None = None  # on the event loop's clock
        self._watch: asyncio.TimerHandle | None = None
        self._last_token_s: float | None = None

    def deliver(self) -> Callable[[Result | CloudError], None]:
        """For the model thread: put an answer into the outbox. Never blocks."""
        mailbox, outbox = self._mailbox, self._outbox

        def put(answer: Result | CloudError) -> None:
            mailbox.post(outbox, answer)

        return put

    def end(self, error: CloudError) -> None:
        """End the stream with this error, after what is in the outbox already."""
        self._outbox.put_nowait(error)

    async def read_open(self) -> Open:
        """The first message. Raises BadFrameError when it is another, IdleError when none comes."""
        limit_s = min(OPEN_TIMEOUT_S, self._idle_ttl_s)
        try:
            message = _decode(await asyncio.wait_for(self._read(), limit_s))
        except asyncio.TimeoutError:
            raise IdleError(f"no Open for {limit_s:g} s") from None
        if not isinstance(message, Open):
            raise BadFrameError("a stream begins with Open")
        return message

    async def read_frames(self, client: Client, engine_loop: EngineLoop) -> None:
        """Frames into the model thread, until the client's last word."""
        self._watch_silence()
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
                owed = self._outstanding.get(message.sequence, 0)
                self._outstanding[message.sequence] = owed + 1
                self.num_frames += 1
                engine_loop.submit(client, message)
            self._outbox.put_nowait(_Closing())
        except CloudError as error:
            self._outbox.put_nowait(error)
        except Exception as error:  # else the writer would wait for ever, and hold the session
            logger.exception("reading a stream failed")
            self._outbox.put_nowait(EngineError(f"reading the stream failed ({error})"))
        finally:
            if self._watch is not None:
                self._watch.cancel()

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
            owed = self._outstanding.pop(answer.sequence, 0)
            if not owed:
                # Of a stream that broke: this client asks for it again, and gets that answer.
                continue
            if owed > 1:
                self._outstanding[answer.sequence] = owed - 1
            self._room.release()
            await self.write(answer)
            self._count(answer)

    async def write(self, message: CloudMessage) -> None:
        data = wire.encode_cloud(message)
        self._metrics.bytes_down.inc(len(data))
        await self._context.write(data)

    def _watch_silence(self) -> None:
        """End the stream once its client was silent for the idle TTL. One timer a stream that
        looks now and then: a time limit on every read would cost more than the read."""
        event_loop = asyncio.get_running_loop()
        now_s = event_loop.time()
        silent_s = 0.0 if self._silent_since_s is None else now_s - self._silent_since_s
        if silent_s >= self._idle_ttl_s:
            self.end(IdleError(f"silent for {self._idle_ttl_s:g} s"))
            return
        self._watch = event_loop.call_later(self._idle_ttl_s - silent_s, self._watch_silence)

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
        """The next message, None at the end."""
        self._silent_since_s = asyncio.get_running_loop().time()
        data: Any = await self._context.read()
        self._silent_since_s = None
        if not isinstance(data, bytes):
            return None
        self._metrics.bytes_up.inc(len(data))
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

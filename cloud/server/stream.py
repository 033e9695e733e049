"""One open stream: frames in, answers out, within the limits of the session and of the tenant.

Two coroutines share it. `read_frames` hands frames to the model thread, no more than
`max_frames_in_flight` at a time, no faster than the tenant's rate, and no more bytes than the
budget has room for (`cloud.server.byte_budget`). `write_answers` sends what comes back. The
reader's last word goes through the same outbox as the answers, so errors and the end arrive in
order.

Every wait ends: for the client's next message after the idle TTL, for room, for the tenant's rate
and for a client that reads no answers after `max_stall_s`, and for the model when the server
notices that it hangs (`cloud.server.supervision`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import grpc

from cloud.engine.loop_commands import ActiveSession, Deliver, Release
from cloud.errors import (
    BadFrameError,
    CapacityError,
    CloudError,
    EngineError,
    IdleError,
    MismatchError,
    UnreadError,
)
from cloud.server.byte_budget import StreamBytes
from cloud.server.mailbox import Mailbox
from cloud.server.metrics import Metrics, ModelMetrics
from cloud.server.timers import within
from cloud.sessions.tenants import Bucket
from codec.kv.frame import MAX_ROWS
from protos import wire
from protos.affinity import replica_in
from protos.errors import RemoteWireError, VersionError
from protos.messages import Close, CloudMessage, Drafts, Frame, Open, Opened, Result
from protos.metadata import REPLICA_KEY
from protos.wire import DEFAULT_FRAMES_IN_FLIGHT

logger = logging.getLogger(__name__)

Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]


class RateLimit(Protocol):
    """How long a frame of `num_rows` rows has to wait for its tenant's rate, in seconds."""

    async def __call__(self, num_rows: int) -> float: ...


class FrameSink(Protocol):
    """The part of `EngineLoop` that takes frames."""

    def submit(self, active: ActiveSession, frame: Frame, release: Release) -> None: ...


class FrameSizes(Protocol):
    """How large the frames of one model may be (`ServedModel`)."""

    @property
    def hidden_size(self) -> int: ...

    def max_hidden_bytes(self, num_rows: int) -> int:
        """Most bytes of hidden states in a frame of so many rows."""
        ...


class _Closing:
    """What the reader says when the client asked to close, or sends no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """idle_ttl_s: how long a client may be silent. max_frames_in_flight: frames unanswered.

    max_stall_s: how long a client may leave an answer unread, and a frame may wait for memory.
    """

    idle_ttl_s: float = 300.0
    max_stall_s: float = 30.0
    max_frames_in_flight: int = DEFAULT_FRAMES_IN_FLIGHT


Answer: TypeAlias = Result | Drafts | CloudError | _Closing

# How long a stream may take to say what it wants.
OPEN_TIMEOUT_S: Final = 10.0
# Messages a second of one stream, over any longer time. Some cost no step of the model: frames that
# come again, and frames sent ahead on a wrong guess.
MAX_MESSAGES_PER_S: Final = 1000.0
_FLOAT32_BYTES: Final = 4


class ServerStream:
    """See the module's docstring. Lives on the event loop's thread."""

    def __init__(
        self,
        context: Context,
        *,
        metrics: Metrics,
        rate_limit: RateLimit,
        room: StreamBytes,
        mailbox: Mailbox[Answer],
        limits: StreamLimits,
        replica: str = "",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """room: for the bytes of its frames. replica: what this server is called behind a shared
        address."""
        self.opened_s = clock()
        self.num_frames = 0
        self.num_tokens = 0
        self.said_close = False  # the client's own word, not the end of a stream that broke
        self._context = context
        self._replica = replica
        self._metrics = metrics
        self._sizes: FrameSizes
        self._row_bytes: int
        self._of_model: ModelMetrics
        self._rate_limit = rate_limit
        self._bytes = room
        self._idle_ttl_s = limits.idle_ttl_s
        self._max_stall_s = limits.max_stall_s
        self._messages = Bucket.full(MAX_MESSAGES_PER_S, at_s=clock())
        self._clock = clock
        self._mailbox = mailbox
        self._outbox: asyncio.Queue[Answer] = asyncio.Queue()
        self._room = asyncio.Semaphore(limits.max_frames_in_flight)
        self._outstanding: dict[int, int] = {}  # answers owed, by sequence number, as they came
        self._early: dict[int, Result] = {}  # answers that wait for an earlier frame's
        self._silent_since_s: float | None = None  # on the event loop's clock
        self._watch: asyncio.TimerHandle | None = None
        self._last_token_s: float | None = None

    def peer(self) -> str:
        """gRPC's name of the client."""
        return self._context.peer()

    @property
    def came_from(self) -> str:
        """The other replica that the client was told last; empty: none."""
        told = replica_in(self._context.invocation_metadata()) if self._replica else ""
        return "" if told == self._replica else told

    async def say_opened(self, opened: Opened) -> None:
        """Send the first message, and before it which replica speaks."""
        if self._replica:
            await self._context.send_initial_metadata(((REPLICA_KEY, self._replica),))
        await self.write(opened)

    def deliver(self) -> Deliver:
        """What puts an answer of the model thread into the outbox. It never blocks."""
        mailbox, outbox = self._mailbox, self._outbox

        def put(answer: Result | Drafts | CloudError) -> None:
            mailbox.post(outbox, answer)

        return put

    def end(self, error: CloudError) -> None:
        """End the stream with this error, after the answers that are in the outbox already."""
        self._outbox.put_nowait(error)

    async def read_open(self) -> Open:
        """The first message.

        Raises BadFrameError when it is no Open, MismatchError for another version of the protocol,
        and IdleError when none comes.
        """
        limit_s = min(OPEN_TIMEOUT_S, self._idle_ttl_s)
        try:
            message = _decode(await asyncio.wait_for(self._read(), limit_s))
        except asyncio.TimeoutError:
            raise IdleError(f"no Open for {limit_s:g} s") from None
        if not isinstance(message, Open):
            raise BadFrameError("a stream begins with Open")
        return message

    def begins(self, sizes: FrameSizes, metrics: ModelMetrics) -> None:
        """Its session is of this model: before the first frame is read."""
        self._sizes = sizes
        self._row_bytes = _FLOAT32_BYTES * sizes.hidden_size
        self._of_model = metrics

    async def read_frames(self, active: ActiveSession, sink: FrameSink) -> None:
        """Hand frames to the model thread until the client closes or sends no more."""
        self._watch_silence()
        try:
            while (message := await self._next_message()) is not None:
                if isinstance(message, Close):
                    self.said_close = True
                    self._outstanding.clear()
                    break
                if not isinstance(message, Frame):
                    raise BadFrameError("a second Open in one stream")
                release = await self._take_turn(message)
                owed = self._outstanding.get(message.sequence, 0)
                self._outstanding[message.sequence] = owed + 1
                self.num_frames += 1
                sink.submit(active, message, release)
                del message  # the next one may be long in coming
            self._outbox.put_nowait(_Closing())
        except CloudError as error:
            self._outbox.put_nowait(error)
        except Exception as error:  # else the writer would wait for ever, and hold the session
            logger.exception("reading a stream failed")
            self._outbox.put_nowait(EngineError(f"reading the stream failed ({error})"))
        finally:
            if self._watch is not None:
                self._watch.cancel()

    async def _next_message(self) -> Open | Frame | Close | None:
        """The next message, None at the end. Not sooner than the limit of messages allows."""
        self._messages, wait_s = self._messages.take(1, at_s=self._clock())
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        data = await self._read()
        return None if data is None else _decode(data)

    async def _take_turn(self, frame: Frame) -> Release:
        """Wait until the frame may go to the model thread; returns what releases its bytes.

        Raises BadFrameError where it is too big, and CapacityError where it waited too long.
        """
        num_rows = len(frame.token_ids)
        most = self._sizes.max_hidden_bytes(num_rows)
        if len(frame.hidden) > most:  # before it waits with others for the model
            raise BadFrameError(
                f"a frame of {len(frame.hidden)} bytes, its rows need {most} at most"
            )
        await self._room.acquire()
        self._of_model.rows.inc(num_rows)
        if frame.is_tokens and not frame.kv:
            self._of_model.id_rows.inc(num_rows)
        if (wait_s := await self._rate_limit(num_rows)) > self._idle_ttl_s:
            raise CapacityError(
                f"{num_rows} rows would wait {wait_s:.0f} s for the tenant's rate",
                retry_after_s=min(wait_s, 60.0),
            )
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        num_bytes = len(frame.hidden) + self._row_bytes * num_rows
        if frame.kv:  # decoded, they take no more than the longest frame's rows
            num_bytes += len(frame.kv) + self._row_bytes * MAX_ROWS
        return await self._bytes.take(num_bytes, max_wait_s=self._max_stall_s)

    async def write_answers(self) -> None:
        """Send answers until the client has closed and has every answer that it waits for.

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
            if isinstance(answer, Drafts):
                if not closing:  # a client that leaves sends no more drafts
                    await self.write(answer)
                continue
            for due in self._in_turn(answer):
                self._room.release()
                await self.write(due)
                self._count(due)

    def _in_turn(self, answer: Result) -> Iterator[Result]:
        """The answers whose turn it is now that `answer` has come: in the order of the frames.

        A frame of a stream that broke may be answered here. This client sends it again and gets
        the answer once, not before those of the frames that it sent first.
        """
        if answer.sequence in self._outstanding:
            self._early[answer.sequence] = answer
        while self._outstanding:
            sequence = next(iter(self._outstanding))
            due = self._early.pop(sequence, None)
            if due is None:
                return
            owed = self._outstanding.pop(sequence)
            if owed > 1:
                self._outstanding[sequence] = owed - 1
            yield due

    async def write(self, message: CloudMessage) -> None:
        """Send one message to the client. Raises UnreadError where the client reads nothing."""
        data = wire.encode_cloud(message)
        self._metrics.bytes_down.inc(len(data))
        unread = UnreadError(f"the client read no answer for {self._max_stall_s:g} s")
        await within(self._max_stall_s, self._context.write(data), unread)

    def _watch_silence(self) -> None:
        """End the stream once its client was silent for the idle TTL.

        One timer per stream looks now and then, because a time limit on every read would cost
        more than the read.
        """
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
            self._of_model.ttft_s.observe(now_s - self.opened_s)
        else:
            self._of_model.tbt_s.observe(now_s - self._last_token_s)
        self._last_token_s = now_s
        self.num_tokens += len(answer.token_ids)
        self._of_model.tokens.inc(len(answer.token_ids))

    async def _read(self) -> bytes | None:
        """The next message, None at the end."""
        self._silent_since_s = asyncio.get_running_loop().time()
        data: Any = await self._context.read()
        self._silent_since_s = None
        if not isinstance(data, bytes):
            return None
        self._metrics.bytes_up.inc(len(data))
        self._bytes.passed(len(data))
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

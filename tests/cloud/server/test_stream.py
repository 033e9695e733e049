"""One stream by itself: what it takes, what it holds back, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cloud.engine.loop_commands import ActiveSession, Release
from cloud.errors import (
    BadFrameError,
    CapacityError,
    CloudError,
    EngineError,
    IdleError,
    MismatchError,
    ReplacedError,
    UnreadError,
)
from cloud.server.byte_budget import ByteBudget, ByteLimits
from cloud.server.mailbox import Mailbox
from cloud.server.metrics import Metrics
from cloud.server.stream import RateLimit, ServerStream, StreamLimits
from protos import wire
from protos.messages import Close, EdgeMessage, Frame, Result
from tests.cloud.parts import ModelThreadByHand, open_request

ACTIVE: Any = None  # the stream hands it on and never looks at it


class FakeContext:
    """A gRPC call of which the test says what comes, and keeps what goes."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.written: list[Any] = []

    def say(self, *messages: EdgeMessage) -> None:
        for message in messages:
            self.incoming.put_nowait(wire.encode_edge(message))

    def end(self) -> None:
        self.incoming.put_nowait(None)

    async def read(self) -> bytes | None:
        return await self.incoming.get()

    async def write(self, data: bytes) -> None:
        self.written.append(wire.decode_cloud(data))


async def at_once(num_rows: int) -> float:
    return 0.0


async def for_days(num_rows: int) -> float:
    return 1e6


class Sizes:
    """Frames of a model whose rows have two values."""

    hidden_size = 2

    def __init__(self, most: int) -> None:
        self._most = most

    def max_hidden_bytes(self, num_rows: int) -> int:
        return self._most * num_rows


class Conversation:
    """A stream, its context, and a model thread that answers when the test says so."""

    def __init__(
        self,
        *,
        wait_s: RateLimit = at_once,
        most: int = 100,
        room: Any = None,
        **limits: Any,
    ) -> None:
        self.context = FakeContext()
        context: Any = self.context
        self.model_thread = ModelThreadByHand()
        self.metrics = Metrics()
        self.stream = ServerStream(
            context,
            metrics=self.metrics,
            rate_limit=wait_s,
            room=room or ByteBudget().stream("one"),
            mailbox=Mailbox(),
            limits=StreamLimits(**limits),
        )
        self.stream.begins(Sizes(most), self.metrics.of_model("m"))
        self.deliver = self.stream.deliver()

    @property
    def submitted(self) -> list[int]:
        return [frame.sequence for frame in self.model_thread.submitted]

    def read(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.stream.read_frames(ACTIVE, self.model_thread))

    def answer(self, sequence: int, *token_ids: int) -> None:
        self.deliver(Result(sequence=sequence, token_ids=token_ids, num_tokens=1))


def frame(sequence: int, num_rows: int = 1, hidden: bytes = b"h") -> Frame:
    return Frame(sequence=sequence, first_position=0, token_ids=(7,) * num_rows, hidden=hidden)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario(), 30)

    asyncio.run(bounded())


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_the_first_message_is_an_open() -> None:
    async def scenario() -> None:
        it = Conversation()
        it.context.say(open_request("first"))
        assert (await it.stream.read_open()).session_id == "first"

    run(scenario)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (wire.encode_edge(frame(0)), BadFrameError),
        (b"\xff\x00 rubbish", BadFrameError),
        (None, BadFrameError),
        (wire.encode_edge(open_request()).replace(b"\x08\x01", b"\x08\x09", 1), MismatchError),
    ],
    ids=["a frame", "rubbish", "the end", "another version"],
)
def test_anything_else_first_is_an_error(data: bytes | None, kind: type[CloudError]) -> None:
    async def scenario() -> None:
        it = Conversation()
        it.context.incoming.put_nowait(data)
        with pytest.raises(kind):
            await it.stream.read_open()

    run(scenario)


def test_a_stream_without_open_is_idle() -> None:
    async def scenario() -> None:
        with pytest.raises(IdleError, match=r"no Open for 0\.05 s"):
            await Conversation(idle_ttl_s=0.05).stream.read_open()

    run(scenario)


def test_a_client_that_closes_waits_for_no_answer_any_more() -> None:
    async def scenario() -> None:
        it = Conversation()
        reader = it.read()
        it.context.say(frame(0), frame(1), Close())
        await reader
        assert it.submitted == [0, 1]
        assert it.stream.said_close
        it.answer(0, 3)
        it.answer(1, 4, 5)
        await it.stream.write_answers()
        assert it.context.written == []

    run(scenario)


def test_a_stream_that_only_ends_still_gets_the_answers_it_waits_for() -> None:
    async def scenario() -> None:
        it = Conversation()
        reader = it.read()
        it.context.say(frame(0), frame(1))
        it.context.end()
        await reader
        assert not it.stream.said_close
        it.answer(0, 3)
        it.answer(1, 4, 5)
        await it.stream.write_answers()
        assert [result.sequence for result in it.context.written] == [0, 1]
        assert (it.stream.num_frames, it.stream.num_tokens) == (2, 3)

    run(scenario)


def test_no_more_frames_are_taken_than_may_be_in_flight() -> None:
    async def scenario() -> None:
        it = Conversation(max_frames_in_flight=2)
        reader, writer = it.read(), asyncio.create_task(it.stream.write_answers())
        it.context.say(*(frame(sequence) for sequence in range(4)))
        await settle()
        assert it.submitted == [0, 1]
        it.answer(0, 3)
        await settle()
        assert it.submitted == [0, 1, 2]
        reader.cancel()
        writer.cancel()

    run(scenario)


def test_an_answer_that_this_stream_did_not_ask_for_is_not_sent() -> None:
    """Of a stream that broke before; the frame comes again, and then it is answered."""

    async def scenario() -> None:
        it = Conversation()
        reader, writer = it.read(), asyncio.create_task(it.stream.write_answers())
        it.answer(5, 3)
        await settle()
        assert it.context.written == []
        it.context.say(frame(5))
        await settle()
        it.answer(5, 3)
        await settle()
        assert [result.sequence for result in it.context.written] == [5]
        reader.cancel()
        writer.cancel()

    run(scenario)


def test_answers_leave_in_the_order_of_the_frames_though_a_broken_stream_left_some() -> None:
    """The client sent 4 and 5 on a stream that broke, and sends both again. The model thread was
    at 5 of the old stream when the new one began."""

    async def scenario() -> None:
        it = Conversation()
        it.context.say(frame(4), frame(5))
        reading = it.read()
        writing = asyncio.create_task(it.stream.write_answers())
        await settle()
        it.answer(5, 50)  # the old stream's
        await settle()
        assert it.context.written == []
        it.answer(4, 40)
        it.answer(5, 50)
        it.context.end()
        await asyncio.gather(reading, writing)
        assert [answer.sequence for answer in it.context.written] == [4, 5]

    run(scenario)


def test_a_frame_waits_for_its_tenants_rate() -> None:
    async def scenario() -> None:
        asked: list[int] = []

        async def wait_s(num_rows: int) -> float:
            asked.append(num_rows)
            return 0.5

        it = Conversation(wait_s=wait_s)
        reader = it.read()
        it.context.say(frame(0, 3))
        await settle()
        assert (asked, it.submitted) == ([3], [])
        while not it.submitted:
            await asyncio.sleep(0.05)
        assert it.submitted == [0]
        reader.cancel()

    run(scenario)


@pytest.mark.parametrize(
    ("message", "reason"),
    [(frame(0, 2, bytes(21)), "rows need 20 at most"), (open_request(), "second Open")],
)
def test_a_message_out_of_place_ends_the_stream(message: EdgeMessage, reason: str) -> None:
    async def scenario() -> None:
        it = Conversation(most=10)
        reader = it.read()
        it.context.say(message)
        await reader
        with pytest.raises(BadFrameError, match=reason):
            await it.stream.write_answers()
        assert it.submitted == []

    run(scenario)


def test_what_came_before_an_error_is_sent_first() -> None:
    async def scenario() -> None:
        it = Conversation()
        reader = it.read()
        it.context.say(frame(0))
        await settle()
        it.answer(0, 3)
        await settle()
        it.stream.end(ReplacedError("opened again"))
        with pytest.raises(ReplacedError):
            await it.stream.write_answers()
        assert len(it.context.written) == 1
        reader.cancel()

    run(scenario)


def test_a_fault_in_reading_is_an_engine_error() -> None:
    async def scenario() -> None:
        it = Conversation()

        def faulty(active: ActiveSession, frame: Frame, release: Release) -> None:
            raise ValueError("unforeseen")

        it.model_thread.submit = faulty  # type: ignore[method-assign]
        reader = it.read()
        it.context.say(frame(0))
        await reader
        with pytest.raises(EngineError, match="unforeseen"):
            await it.stream.write_answers()

    run(scenario)


def test_silence_ends_the_stream_but_a_wait_for_answers_does_not() -> None:
    async def scenario() -> None:
        it = Conversation(idle_ttl_s=0.2, max_frames_in_flight=1)
        reader = it.read()
        it.context.say(frame(0), frame(1))  # the second waits for the first one's answer
        await asyncio.sleep(0.5)
        writer = asyncio.create_task(it.stream.write_answers())
        await settle()
        assert not writer.done()
        it.answer(0, 3)
        with pytest.raises(IdleError, match=r"silent for 0\.2 s"):
            await writer
        reader.cancel()

    run(scenario)


def test_tokens_are_counted_and_the_first_one_timed_apart() -> None:
    async def scenario() -> None:
        it = Conversation()
        reader = it.read()
        it.context.say(frame(0), frame(1), frame(2))
        it.context.end()
        await reader
        it.answer(0)  # a chunk of the prompt that wanted no token
        it.answer(1, 3)
        it.answer(2, 4, 5)
        await it.stream.write_answers()
        value = it.metrics.registry.get_sample_value
        assert value("splitpoint_tokens_total", {"model": "m"}) == 3
        assert value("splitpoint_ttft_seconds_count", {"model": "m"}) == 1
        assert value("splitpoint_tbt_seconds_count", {"model": "m"}) == 1

    run(scenario)


def test_a_frame_waits_for_memory_and_ends_its_stream_when_it_waits_too_long() -> None:
    async def scenario() -> None:
        budget = ByteBudget(ByteLimits(total=200_000, per_tenant=200_000, per_stream=200_000))
        it = Conversation(most=1 << 20, room=budget.stream("one"), max_stall_s=0.2)
        reader = it.read()
        for sequence in range(3):
            it.context.say(frame(sequence, hidden=bytes(90_000)))
        await settle()
        assert it.submitted == [0, 1]
        it.model_thread.releases[0]()
        await settle()
        assert it.submitted == [0, 1, 2]
        it.context.say(frame(3, hidden=bytes(90_000)))
        await reader
        with pytest.raises(CapacityError, match="no room for a frame"):
            await it.stream.write_answers()

    run(scenario)


def test_a_client_that_reads_nothing_ends_its_stream() -> None:
    async def scenario() -> None:
        it = Conversation(max_stall_s=0.1)

        async def stuck(data: bytes) -> None:
            await asyncio.get_running_loop().create_future()

        it.context.write = stuck  # type: ignore[method-assign]
        reader = it.read()
        it.context.say(frame(0))
        await settle()
        it.answer(0, 3)
        with pytest.raises(UnreadError, match=r"read no answer for 0\.1 s"):
            await it.stream.write_answers()
        reader.cancel()

    run(scenario)


def test_a_rate_that_would_take_for_ever_is_refused() -> None:
    async def scenario() -> None:
        it = Conversation(wait_s=for_days)
        reader = it.read()
        it.context.say(frame(0))
        await reader
        with pytest.raises(CapacityError, match="would wait 1000000 s"):
            await it.stream.write_answers()

    run(scenario)


def test_a_stream_says_no_more_messages_a_second_than_the_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cloud.server.stream.MAX_MESSAGES_PER_S", 10.0)

    async def scenario() -> None:
        it = Conversation(max_frames_in_flight=100)
        reader = it.read()
        it.context.say(*(frame(sequence) for sequence in range(30)))
        await asyncio.sleep(0.3)
        assert 10 <= len(it.submitted) <= 16
        reader.cancel()

    run(scenario)

"""The service without a model or a socket: how calls end, and what becomes of their sessions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from cloud.server.conversations import Conversations, ModelBackend
from cloud.server.description import ServerDescription
from cloud.server.metrics import Metrics
from cloud.server.service import InferenceService
from cloud.server.stream import StreamLimits
from cloud.sessions.siblings import Siblings
from cloud.sessions.tenants import Tenants
from protos import wire
from protos.messages import Close, Closed, CloudMessage, EdgeMessage, Open, Opened, ProbeChunk
from tests.cloud.parts import Parts, open_request


class AbortedError(Exception):
    """What `abort` raises, as gRPC does."""


class FakeCall:
    """One call, from the server's side."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self.incoming: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.written: list[CloudMessage] = []
        self.status: grpc.StatusCode | None = None
        self.detail = ""
        self.trailers: dict[str, str] = {}
        self.headers: dict[str, str] = {}
        self._metadata = metadata

    def say(self, message: EdgeMessage) -> None:
        self.incoming.put_nowait(wire.encode_edge(message))

    def breaks(self) -> None:
        self.incoming.put_nowait(None)

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def time_remaining(self) -> None:
        return None

    def peer(self) -> str:
        return "ipv4:10.0.0.1:5023"

    def done(self) -> bool:
        return self.status is not None

    async def read(self) -> bytes | None:
        return await self.incoming.get()

    async def send_initial_metadata(self, headers: Any) -> None:
        assert not self.written
        self.headers = dict(headers)

    async def write(self, data: bytes) -> None:
        self.written.append(wire.decode_cloud(data))

    async def abort(self, status: grpc.StatusCode, detail: str, trailers: Any = ()) -> None:
        self.status, self.detail, self.trailers = status, detail, dict(trailers)
        raise AbortedError(detail)


class Service:
    """An `InferenceService` over parts that the test looks at."""

    def __init__(
        self,
        *,
        tenants: Tenants | None = None,
        siblings: Siblings | None = None,
        replica: str = "",
        **limits: Any,
    ) -> None:
        self.parts = parts = Parts(siblings=siblings, **limits)
        self.metrics = Metrics()
        self.conversations = Conversations(
            parts.admission,
            [
                ModelBackend(
                    sessions=parts.sessions,
                    thread=parts.model_thread,
                    metrics=self.metrics.of_model("small"),
                )
            ],
            lifecycle=parts.lifecycle,
            resumable=parts.resumable,
            max_frames_in_flight=16,
            max_resume_s=60.0,
            siblings=siblings,
        )
        self.service = InferenceService(
            ServerDescription(parts.models, parts.lifecycle, ()),
            self.conversations,
            metrics=self.metrics,
            tenants=tenants,
            stream_limits=StreamLimits(idle_ttl_s=60.0),
            siblings=siblings,
            replica=replica,
        )
        self.tasks: list[asyncio.Task[None]] = []

    def call(self, *metadata: tuple[str, str]) -> FakeCall:
        call = FakeCall(*metadata)
        context: Any = call
        self.tasks.append(asyncio.create_task(self.service.generate(nothing(), context)))
        return call

    async def open(self, request: Open) -> FakeCall:
        call = self.call()
        call.say(request)
        await settle()
        return call

    async def freed(self) -> None:
        self.parts.model_thread.free_all()
        await settle()


async def nothing() -> AsyncIterator[bytes]:
    none: tuple[bytes, ...] = ()
    for data in none:
        yield data


async def settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario(), 30)

    asyncio.run(bounded())


def opened(call: FakeCall) -> Opened:
    first = call.written[0]
    assert isinstance(first, Opened)
    return first


def test_a_session_that_closes_says_so_once_its_memory_is_free() -> None:
    async def scenario() -> None:
        it = Service()
        call = await it.open(open_request())
        assert opened(call).max_frames_in_flight == 16
        call.say(Close())
        await settle()
        assert call.written == [opened(call)]
        await it.freed()
        assert call.written == [opened(call), Closed()]
        assert it.parts.lifecycle.num_with_blocks == 0

    run(scenario)


def test_a_client_that_goes_while_it_is_freed_does_not_give_its_place_away_early() -> None:
    async def scenario() -> None:
        it = Service(max_sessions=1)
        call = await it.open(open_request("a"))
        waiting = await it.open(open_request("b"))
        call.say(Close())
        await settle()
        it.tasks[0].cancel()
        await settle()
        assert waiting.written == []
        await it.freed()
        assert opened(waiting).session_id == "b"
        assert it.parts.pool.num_leases == 1

    run(scenario)


def test_a_stranger_is_refused_before_a_word_is_said() -> None:
    async def scenario() -> None:
        it = Service(tenants=Tenants.parse(b"secret name=one", "tokens"))
        for metadata in ((), (("authorization", "Bearer other"),)):
            call = it.call(*metadata)
            await settle()
            assert call.status is grpc.StatusCode.UNAUTHENTICATED
        known = it.call(("authorization", "Bearer secret"))
        known.say(open_request())
        await settle()
        assert opened(known).session_id == "s"
        value = it.metrics.registry.get_sample_value
        assert value("splitpoint_errors_total", {"kind": "AccessError"}) == 2

    run(scenario)


def test_a_full_server_says_in_its_trailers_when_to_come_back() -> None:
    async def scenario() -> None:
        it = Service(max_sessions=1, max_waiting=0)
        await it.open(open_request("a"))
        call = await it.open(open_request("b"))
        assert call.status is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert float(call.trailers[wire.RETRY_AFTER_KEY]) > 0

    run(scenario)


@pytest.mark.parametrize(
    ("resume_s", "num_resumable"), [(9.0, 1), (0.0, 0)], ids=["asked for", "not asked for"]
)
def test_a_broken_stream_leaves_a_resumable_session_where_its_client_asked_for_it(
    resume_s: float, num_resumable: int
) -> None:
    async def scenario() -> None:
        it = Service()
        call = await it.open(open_request(resume_s=resume_s))
        call.breaks()
        await settle()
        assert it.parts.lifecycle.num_resumable == num_resumable
        assert len(it.parts.model_thread.closing) == 1 - num_resumable
        await it.freed()
        assert it.parts.lifecycle.num_with_blocks == num_resumable

    run(scenario)


def test_a_session_is_opened_again_before_or_after_its_server_noticed_the_break() -> None:
    async def scenario() -> None:
        it = Service()
        request = open_request(resume_s=9.0)
        first = await it.open(request)
        second = await it.open(request)  # the first stream still stands
        assert first.status is grpc.StatusCode.ABORTED
        second.breaks()
        await settle()
        third = await it.open(request)
        assert opened(third).session_id == "s"
        assert (it.parts.pool.num_leases, it.parts.model_thread.closing) == (1, [])
        value = it.metrics.registry.get_sample_value
        assert value("splitpoint_sessions_opened_total", {"model": "small", "how": "resumed"}) == 2

    run(scenario)


@pytest.mark.parametrize("breaks", [True, False], ids=["resumable", "on its stream"])
def test_a_session_opened_again_on_other_terms_begins_anew(breaks: bool) -> None:
    async def scenario() -> None:
        it = Service()
        first = await it.open(open_request(resume_s=9.0))
        if breaks:
            first.breaks()
            await settle()
        await it.open(open_request(resume_s=9.0, max_tokens=32))
        assert len(it.parts.model_thread.closing) == 1
        await it.freed()
        assert it.parts.pool.num_leases == it.parts.lifecycle.num_with_blocks == 1
        value = it.metrics.registry.get_sample_value
        assert (
            value("splitpoint_sessions_opened_total", {"model": "small", "how": "resumed"}) is None
        )

    run(scenario)


def test_handing_back_ends_every_session_and_says_to_go_elsewhere() -> None:
    async def scenario() -> None:
        it = Service()
        running = await it.open(open_request("running", resume_s=9.0))
        broken = await it.open(open_request("broken", resume_s=9.0))
        broken.breaks()
        await settle()
        it.parts.admission.drain()
        it.service.hand_back()
        await settle()
        assert running.status is grpc.StatusCode.UNAVAILABLE
        assert "elsewhere" in running.detail
        await it.freed()
        assert it.parts.lifecycle.num_with_blocks == 0

    run(scenario)


def test_it_describes_itself_and_answers_probes_until_one_is_malformed() -> None:
    async def scenario() -> None:
        it = Service()
        await it.open(open_request())
        call = FakeCall()
        context: Any = call
        answer = await it.service.describe(wire.encode_describe_request(), context)
        assert wire.decode_description(answer).active_sessions == 1

        written: list[ProbeChunk] = []

        async def write(data: bytes) -> None:
            written.append(wire.decode_probe(data))

        call.write = write  # type: ignore[method-assign]
        asked = ProbeChunk(sequence=4, padding_bytes=0, want_bytes=70)
        call.incoming.put_nowait(wire.encode_probe(asked))
        call.incoming.put_nowait(b"\xff rubbish")
        with pytest.raises(AbortedError):
            await it.service.probe(nothing(), context)
        assert written == [ProbeChunk(sequence=4, padding_bytes=70)]
        assert call.status is grpc.StatusCode.INVALID_ARGUMENT

    run(scenario)

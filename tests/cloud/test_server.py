"""A server on port 0 and a raw gRPC client: whole sessions, and everything that goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloud.errors import StartError
from cloud.server import Server, ServerConfig, serving
from codec.frame import CodecKind, check_seed, pack_frame
from codec.ladder import Ladder
from codec.lossless import encode_lossless
from decoding.params import SamplingParams
from optimizer.errors import BundleError
from protos import wire
from protos.messages import (
    Close,
    Closed,
    CloudMessage,
    EdgeMessage,
    Frame,
    Open,
    Opened,
    ProbeChunk,
    Result,
)
from tests.cloud.tiny_bundle import MODEL_SHA256, WholeModelFront, make_bundle

SPLIT = 2
WIDTH = 64
LADDER = Ladder.lossless(WIDTH)
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


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(tmp_path_factory.mktemp("served"))


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


class Stream:
    """One Generate call, message by message."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Any = None) -> None:
        call = channel.stream_stream(wire.GENERATE_PATH)
        self.call = call(metadata=metadata)

    async def send(self, message: EdgeMessage) -> None:
        await self.call.write(wire.encode_edge(message))

    async def receive(self) -> CloudMessage:
        data = await asyncio.wait_for(self.call.read(), 60)
        if data is grpc.aio.EOF:
            await self.call.wait_for_connection()  # raises the status the stream ended with
            raise AssertionError(f"the stream ended: {await self.call.code()}")
        return wire.decode_cloud(data)

    async def open(self, **changes: Any) -> Stream:
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
    async with serving(config) as server, _channel(server.port) as channel:
        yield server, channel


def _channel(port: int) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}")


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 280))


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


async def generate(served: Served, stream: Stream, prompt: list[int], count: int) -> list[int]:
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


PROMPT = [5, 99, 17, 200, 31, 7, 180, 44]


def test_a_session_gives_the_whole_models_greedy_tokens_and_frees_its_cache(
    served: Served,
) -> None:
    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            stream = await Stream(channel).open()
            assert server.pool.used_bytes > 0
            assert await generate(served, stream, PROMPT, 12) == served.front.greedy(PROMPT, 12)
            await stream.send(Close())
            assert isinstance(await stream.receive(), Closed)
            assert server.pool.used_bytes == 0
            await until(lambda: server.admission.num_sessions == 0)

    run(scenario)


def test_sessions_of_different_splits_at_once_each_get_their_own_tokens(served: Served) -> None:
    async def one(channel: grpc.aio.Channel, split: int) -> None:
        front = WholeModelFront(served.model, split)
        prompt = [split + 3, *PROMPT]
        stream = await Stream(channel).open(split=split, session_id=f"split-{split}")
        tokens, first = list(prompt), 0
        for sequence in range(10):
            ids = tokens[first:]
            hidden = LADDER.encode(
                "lossless", front.rows(tokens, first), np.asarray(ids, dtype=np.int64)
            )
            result = await stream.ask(
                Frame(sequence=sequence, first_position=first, token_ids=tuple(ids), hidden=hidden)
            )
            first = len(tokens)
            tokens += result.token_ids
        assert tokens[len(prompt) :] == front.greedy(prompt, 10)

    async def scenario() -> None:
        async with connected(served.config) as (_, channel):
            await asyncio.gather(*(one(channel, split) for split in range(4)))

    run(scenario)


def test_drafts_are_verified_and_refused_rows_leave_the_cache(served: Served) -> None:
    right = served.front.greedy(PROMPT, 6)
    wrong = (right[2] + 1) % 300

    async def scenario() -> None:
        async with connected(served.config) as (_, channel):
            stream = await Stream(channel).open()
            first = await stream.ask(frame_of(served, 0, PROMPT, 0))
            assert list(first.token_ids) == right[:1]
            tokens = [*PROMPT, right[0], right[1], wrong, right[3]]
            answer = await stream.ask(frame_of(served, 1, tokens, len(PROMPT), num_drafts=3))
            # One draft was right, the second was not: the accepted one and the correction.
            assert list(answer.token_ids) == right[1:3]
            assert answer.num_tokens == len(PROMPT) + 2
            tokens = [*PROMPT, *right[:5]]
            done = await stream.ask(frame_of(served, 2, tokens, len(PROMPT) + 2, num_drafts=2))
            assert list(done.token_ids) == right[3:6]

    run(scenario)


def test_a_repeated_frame_is_answered_again_and_not_applied_twice(served: Served) -> None:
    async def scenario() -> None:
        async with connected(served.config) as (_, channel):
            stream = await Stream(channel).open()
            prefill = frame_of(served, 0, PROMPT, 0)
            first = await stream.ask(prefill)
            assert await stream.ask(prefill) == first
            tokens = [*PROMPT, *first.token_ids]
            second = await stream.ask(frame_of(served, 1, tokens, len(PROMPT)))
            assert [*first.token_ids, *second.token_ids] == served.front.greedy(PROMPT, 2)
            assert second.num_tokens == len(tokens)

    run(scenario)


def with_nan(frame: Frame) -> Frame:
    """The same frame, well-formed down to its checksum, but for one NaN among the floats."""
    ids = np.asarray(frame.token_ids, dtype=np.int64)
    rows = LADDER.decode(frame.hidden, num_rows=len(ids), token_ids=ids).copy()
    rows[3, 5] = np.nan
    payload = encode_lossless(rows, ids)
    seed = check_seed(WIDTH, LADDER.tables_sha256)
    return replace(frame, hidden=pack_frame(CodecKind.LOSSLESS, 0, len(ids), payload, seed))


BAD_FRAMES: dict[str, Callable[[Frame], Frame]] = {
    "nan": with_nan,
    "gap": lambda f: replace(f, sequence=1),
    "hole": lambda f: replace(f, first_position=3),
    "too-few-rows": lambda f: replace(f, token_ids=f.token_ids[:-1]),
    "truncated": lambda f: replace(f, hidden=f.hidden[:-3]),
    "corrupted": lambda f: replace(f, hidden=f.hidden[:40] + b"\xff\xff" + f.hidden[42:]),
    "empty": lambda f: replace(f, hidden=b""),
    "oversized": lambda f: replace(f, hidden=f.hidden + bytes(5 << 20)),
    "unknown-token": lambda f: replace(f, token_ids=(*f.token_ids[:-1], 4_000_000)),
    "beyond-reservation": lambda f: replace(f, token_ids=tuple(range(70))),
    "drafts-without-answer": lambda f: replace(f, num_drafts=2, want_token=False),
}


@pytest.mark.parametrize("kind", sorted(BAD_FRAMES))
def test_a_bad_frame_ends_its_own_stream_alone(served: Served, kind: str) -> None:
    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            neighbour = await Stream(channel).open(session_id="neighbour")
            before = server.pool.used_bytes
            stream = await Stream(channel).open()
            await stream.send(BAD_FRAMES[kind](frame_of(served, 0, PROMPT, 0)))
            code, reason = await stream.refused()
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert reason
            await until(lambda: server.pool.used_bytes == before)
            expected = served.front.greedy(PROMPT, 3)
            assert await generate(served, neighbour, PROMPT, 3) == expected

    run(scenario)


def test_rubbish_instead_of_a_message_is_refused(served: Served) -> None:
    async def scenario() -> None:
        async with connected(served.config) as (_, channel):
            stream = Stream(channel)
            await stream.call.write(b"\xff\x00 not protobuf")
            assert (await stream.refused())[0] is grpc.StatusCode.INVALID_ARGUMENT
            silent = Stream(channel)
            await silent.call.done_writing()
            assert (await silent.refused())[0] is grpc.StatusCode.INVALID_ARGUMENT
            early = Stream(channel)
            await early.send(frame_of(served, 0, PROMPT, 0))
            assert (await early.refused())[0] is grpc.StatusCode.INVALID_ARGUMENT

    run(scenario)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"model_sha256": "cd" * 32}, "FAILED_PRECONDITION", ("cd" * 32, MODEL_SHA256)),
        ({"codec_tables_sha256": "ef" * 32}, "FAILED_PRECONDITION", ("ef" * 32,)),
        ({"hidden_size": 65}, "INVALID_ARGUMENT", ("65", "64")),
        ({"split": 4}, "INVALID_ARGUMENT", ("0 to 3",)),
        ({"max_tokens": 201}, "INVALID_ARGUMENT", ("201", "200")),
    ],
)
def test_an_open_that_does_not_fit_is_refused_with_both_sides_named(
    served: Served, changes: dict[str, Any], code: str, words: tuple[str, ...]
) -> None:
    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            stream = Stream(channel)
            await stream.send(open_message(**changes))
            got, reason = await stream.refused()
            assert got is grpc.StatusCode[code]
            assert all(word in reason for word in words)
            assert server.pool.used_bytes == 0
            assert server.admission.num_sessions == 0

    run(scenario)


def test_another_protocol_version_is_a_failed_precondition(served: Served) -> None:
    async def scenario() -> None:
        async with connected(served.config) as (_, channel):
            stream = Stream(channel)
            data = bytearray(wire.encode_edge(open_message()))
            at = data.index(b"\x08\x01")  # field 1, protocol_version 1
            data[at + 1] = 9
            await stream.call.write(bytes(data))
            code, reason = await stream.refused()
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert "9" in reason
            assert "1" in reason

    run(scenario)


@pytest.mark.parametrize(
    "limit", [{"max_sessions": 2}, {"kv_memory_bytes": 2 * SESSION_KV_BYTES + 1}]
)
def test_a_full_server_says_when_to_come_back_and_then_has_room(
    served: Served, limit: dict[str, int]
) -> None:
    async def scenario() -> None:
        async with connected(replace(served.config, **limit)) as (server, channel):
            first = await Stream(channel).open(session_id="a")
            await Stream(channel).open(session_id="b")
            third = Stream(channel)
            await third.send(open_message(session_id="c"))
            await until(lambda: server.admission.num_waiting == 1)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await third.receive()
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            trailers = dict(caught.value.trailing_metadata())
            assert float(trailers["retry-after-s"]) > 0
            await first.send(Close())
            assert isinstance(await first.receive(), Closed)
            await until(lambda: server.admission.num_sessions == 1)
            await Stream(channel).open(session_id="c")

    run(scenario)


def test_cancelling_and_disconnecting_free_the_cache(served: Served) -> None:
    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            stream = await Stream(channel).open()
            await stream.ask(frame_of(served, 0, PROMPT, 0))
            stream.call.cancel()
            await until(lambda: server.pool.used_bytes == 0)
            other = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
            await Stream(other).open()
            assert server.pool.used_bytes > 0
            await other.close()
            await until(lambda: server.pool.used_bytes == 0)
            assert server.admission.num_sessions == 0

    run(scenario)


def test_a_silent_session_is_evicted(served: Served) -> None:
    async def scenario() -> None:
        async with connected(replace(served.config, idle_ttl_s=1.0)) as (server, channel):
            stream = await Stream(channel).open()
            code, reason = await stream.refused()
            assert code is grpc.StatusCode.ABORTED
            assert "silent" in reason
            await until(lambda: server.pool.used_bytes == 0)

    run(scenario)


def test_a_session_opened_again_replaces_its_dead_stream(served: Served) -> None:
    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            old = await Stream(channel).open(session_id="same")
            held = server.pool.used_bytes
            new = await Stream(channel).open(session_id="same")
            assert (await old.refused())[0] is grpc.StatusCode.ABORTED
            await until(lambda: server.pool.used_bytes == held)
            assert await generate(served, new, PROMPT, 3) == served.front.greedy(PROMPT, 3)

    run(scenario)


def test_two_thousand_sessions_cut_at_random_moments_leave_nothing_behind(
    served: Served,
) -> None:
    generator = np.random.default_rng(1)
    prefill = frame_of(served, 0, PROMPT, 0)
    expected = served.front.greedy(PROMPT, 1)

    async def one(channel: grpc.aio.Channel, index: int, cut: int) -> None:
        stream = Stream(channel)
        try:
            await stream.send(open_message(session_id=f"s{index}"))
            if cut == 0:
                return
            await stream.receive()
            await stream.send(prefill)
            if cut == 1:
                return
            result = await stream.receive()
            assert isinstance(result, Result)
            assert list(result.token_ids) == expected
            if cut == 2:
                await stream.send(Close())
                await stream.receive()
        finally:
            stream.call.cancel()

    async def scenario() -> None:
        config = replace(served.config, max_sessions=64, kv_memory_bytes=64 << 20)
        async with connected(config) as (server, channel):
            process, settled_bytes = psutil.Process(), 0
            for begin in range(0, 2000, 50):
                if begin == 400:  # whatever is allocated once has been
                    settled_bytes = process.memory_info().rss
                cuts = generator.integers(0, 4, 50)
                await asyncio.gather(
                    *(one(channel, begin + i, int(cut)) for i, cut in enumerate(cuts))
                )
                await until(lambda: server.admission.num_sessions == 0)
            await until(lambda: server.pool.used_bytes == 0)
            assert server.pool.num_leases == 0
            assert process.memory_info().rss < 1.05 * settled_bytes

    run(scenario)


def test_describe_health_reflection_and_probe_answer(served: Served) -> None:
    from google.protobuf.descriptor_pool import DescriptorPool
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
        ProtoReflectionDescriptorDatabase,
    )

    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            await Stream(channel).open()
            description = wire.decode_description(
                await channel.unary_unary(wire.DESCRIBE_PATH)(wire.encode_describe_request())
            )
            assert description.model_sha256 == MODEL_SHA256
            assert (description.first_layer, description.num_layers) == (0, 4)
            assert description.active_sessions == 1
            assert description.kv_bytes_in_use == server.pool.used_bytes
            health = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest(service=wire.SERVICE_NAME))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            probe = channel.stream_stream(wire.PROBE_PATH)()
            await probe.write(
                wire.encode_probe(ProbeChunk(sequence=3, padding_bytes=0, want_bytes=900))
            )
            echo = wire.decode_probe(await probe.read())
            assert (echo.sequence, echo.padding_bytes) == (3, 900)
            await asyncio.to_thread(reflect, server.port)

    def reflect(port: int) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            assert wire.SERVICE_NAME in database.get_services()
            service = DescriptorPool(database).FindServiceByName(wire.SERVICE_NAME)
            assert {method.name for method in service.methods} == {"Generate", "Describe", "Probe"}

    run(scenario)


def test_draining_finishes_what_runs_and_takes_nothing_new(served: Served) -> None:
    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            stream = await Stream(channel).open()
            first = await stream.ask(frame_of(served, 0, PROMPT, 0))
            draining = asyncio.create_task(server.drain(20))
            await until(lambda: server.admission.draining)
            late = Stream(channel)
            await late.send(open_message(session_id="late"))
            assert (await late.refused())[0] is grpc.StatusCode.UNAVAILABLE
            health = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest(service=wire.SERVICE_NAME))
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
            tokens = [*PROMPT, *first.token_ids]
            second = await stream.ask(frame_of(served, 1, tokens, len(PROMPT)))
            assert [*first.token_ids, *second.token_ids] == served.front.greedy(PROMPT, 2)
            assert not draining.done()
            await stream.send(Close())
            await draining

    run(scenario)


def test_a_token_is_needed_where_one_is_configured(served: Served, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("# ours\nopen-sesame\n")

    good = (("authorization", "Bearer open-sesame"),)

    async def attempt(channel: grpc.aio.Channel, metadata: Any) -> grpc.StatusCode:
        stream = Stream(channel, metadata)
        try:
            # Refused before a word is said: the server does not wait for the first message.
            if metadata == good:
                await stream.send(open_message())
            await stream.receive()
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    async def scenario() -> None:
        access = replace(served.config.access, token_file=tokens)
        async with connected(replace(served.config, access=access)) as (_, channel):
            assert await attempt(channel, None) is grpc.StatusCode.UNAUTHENTICATED
            for wrong in ("Bearer open-sesamE", "Bearer ", "open-sesame", "Bearer # ours"):
                metadata = (("authorization", wrong),)
                assert await attempt(channel, metadata) is grpc.StatusCode.UNAUTHENTICATED
            assert await attempt(channel, good) is grpc.StatusCode.OK
            describe = channel.unary_unary(wire.DESCRIBE_PATH)
            with pytest.raises(grpc.aio.AioRpcError):
                await describe(wire.encode_describe_request())
            health = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest(service=""))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING

    run(scenario)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "::", "example.org"])
def test_listening_beyond_loopback_needs_tls_and_a_token(served: Served, host: str) -> None:
    async def scenario() -> None:
        with pytest.raises(StartError, match="refusing to listen"):
            async with serving(replace(served.config, host=host)):
                pass

    run(scenario)


def test_a_changed_weight_file_is_noticed_before_listening(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    weights = tmp_path / "bundle" / "cloud" / "back-00001.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))

    async def scenario() -> None:
        with pytest.raises(BundleError, match=r"back-00001\.safetensors was changed"):
            async with serving(ServerConfig(bundle=tmp_path / "bundle", port=0)):
                pass

    run(scenario)

"""Whole sessions against a server on port 0, and what a client may say wrongly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloud.engine.frame_decoding import Decoded
from cloud.engine.frame_work import FrameWork
from cloud.engine.loop import EngineLoop
from cloud.sessions.session import ServerSession
from codec.frame import check_seed, pack_frame
from codec.levels.lossless import LOSSLESS, encode_lossless
from protos import wire
from protos.messages import (
    Close,
    Closed,
    Frame,
    ProbeChunk,
    Result,
)
from tests.cloud.serving import (
    LADDER,
    PROMPT,
    WIDTH,
    RawStream,
    Served,
    calls_of,
    connected,
    frame_of,
    generate,
    open_message,
    run,
    until,
)
from tests.cloud.tiny_bundle import MODEL_SHA256, WholeModelFront


def test_a_session_gives_the_whole_models_greedy_tokens_and_frees_its_cache(
    served: Served,
) -> None:
    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            stream = await RawStream(channel).open()
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
        stream = await RawStream(channel).open(split=split, session_id=f"split-{split}")
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
            stream = await RawStream(channel).open()
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
            stream = await RawStream(channel).open()
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
    return replace(frame, hidden=pack_frame(LOSSLESS.number, 0, len(ids), payload, seed))


BAD_FRAMES: dict[str, Callable[[Frame], Frame]] = {
    "nan": with_nan,
    "gap": lambda f: replace(f, sequence=1),
    "hole": lambda f: replace(f, first_position=3),
    "too-few-rows": lambda f: replace(f, token_ids=f.token_ids[:-1]),
    "truncated": lambda f: replace(f, hidden=f.hidden[:-3]),
    "corrupted": lambda f: replace(f, hidden=f.hidden[:40] + b"\xff\xff" + f.hidden[42:]),
    "empty": lambda f: replace(f, hidden=b""),
    "oversized": lambda f: replace(f, hidden=f.hidden + bytes(300 << 10)),
    "unknown-token": lambda f: replace(f, token_ids=(*f.token_ids[:-1], 4_000_000)),
    "beyond-reservation": lambda f: replace(f, token_ids=tuple(range(70))),
    "drafts-without-answer": lambda f: replace(f, num_drafts=2, want_token=False),
}


@pytest.mark.parametrize("kind", sorted(BAD_FRAMES))
def test_a_bad_frame_ends_its_own_stream_alone(served: Served, kind: str) -> None:
    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            neighbour = await RawStream(channel).open(session_id="neighbour")
            before = server.pool.used_bytes
            stream = await RawStream(channel).open()
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
            stream = RawStream(channel)
            await stream.call.write(b"\xff\x00 not protobuf")
            assert (await stream.refused())[0] is grpc.StatusCode.INVALID_ARGUMENT
            silent = RawStream(channel)
            await silent.call.done_writing()
            assert (await silent.refused())[0] is grpc.StatusCode.INVALID_ARGUMENT
            early = RawStream(channel)
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
            stream = RawStream(channel)
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
            stream = RawStream(channel)
            data = bytearray(wire.encode_edge(open_message()))
            at = data.index(b"\x08\x01")  # field 1, protocol_version 1
            data[at + 1] = 9
            await stream.call.write(bytes(data))
            code, reason = await stream.refused()
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert "9" in reason
            assert "2" in reason

    run(scenario)


def test_a_frame_far_larger_than_its_rows_is_refused_before_it_is_queued(served: Served) -> None:
    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            stream = await RawStream(channel).open()
            await stream.send(frame_of(served, 0, PROMPT, 0, hidden=bytes(100_000)))
            code, reason = await stream.refused()
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "rows need" in reason
            await until(lambda: server.pool.used_bytes == 0)

    run(scenario)


def test_a_fault_in_taking_in_a_frame_ends_that_session_alone(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = ServerSession.begin

    def faulty(
        session: ServerSession, frame: Frame, decoded: Decoded | None = None
    ) -> FrameWork | Result:
        if session.session_id == "bad":
            raise MemoryError("no room")
        return begin(session, frame, decoded)

    monkeypatch.setattr(ServerSession, "begin", faulty)

    async def scenario() -> None:
        async with connected(served.config) as (_, channel):
            bad = await RawStream(channel).open(session_id="bad")
            await bad.send(frame_of(served, 0, PROMPT, 0))
            assert (await bad.refused())[0] is grpc.StatusCode.INTERNAL
            good = await RawStream(channel).open(session_id="good")
            assert await generate(served, good, PROMPT, 3) == served.front.greedy(PROMPT, 3)

    run(scenario)


def test_a_fault_in_reading_ends_the_stream_instead_of_holding_its_session(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*_: object) -> None:
        raise ValueError("of no kind that was foreseen")

    monkeypatch.setattr(EngineLoop, "submit", faulty)

    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            stream = await RawStream(channel).open()
            await stream.send(frame_of(served, 0, PROMPT, 0))
            assert (await stream.refused())[0] is grpc.StatusCode.INTERNAL
            await until(lambda: server.pool.used_bytes == 0)

    run(scenario)


def test_describe_health_reflection_and_probe_answer(served: Served) -> None:
    from google.protobuf.descriptor_pool import DescriptorPool
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
        ProtoReflectionDescriptorDatabase,
    )

    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            await RawStream(channel).open()
            description = wire.decode_description(
                await calls_of(channel).unary_unary(wire.DESCRIBE_PATH)(
                    wire.encode_describe_request()
                )
            )
            assert description.model_sha256 == MODEL_SHA256
            assert (description.first_layer, description.num_layers) == (0, 4)
            assert description.active_sessions == 1
            assert description.kv_bytes_in_use == server.pool.used_bytes
            health = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest(service=wire.SERVICE_NAME))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            probe = calls_of(channel).stream_stream(wire.PROBE_PATH)()
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
            names = {method.name for method in service.methods}
            assert names == {"Generate", "Describe", "Probe", "ListFiles", "Fetch"}

    run(scenario)

"""Room, time and access: full servers, silent and vanished clients, draining, tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloud.errors import StartError
from cloud.server.process import ServerConfig, serving
from optimizer.errors import BundleError
from protos import wire
from protos.messages import (
    Close,
    Closed,
    Opened,
    Result,
)
from tests.cloud.serving import (
    PROMPT,
    SESSION_KV_BYTES,
    RawStream,
    Served,
    calls_of,
    connected,
    frame_of,
    generate,
    num_waiting_is,
    open_message,
    run,
    until,
)
from tests.cloud.tiny_bundle import make_bundle


@pytest.mark.parametrize(
    "limit",
    [
        lambda config: replace(config, max_sessions=2),
        lambda config: replace(config, kv_memory_bytes=2 * SESSION_KV_BYTES + 1),
    ],
    ids=["sessions", "memory"],
)
def test_a_full_server_says_when_to_come_back_and_then_has_room(
    served: Served, limit: Callable[[ServerConfig], ServerConfig]
) -> None:
    async def scenario() -> None:
        async with connected(limit(served.config)) as (server, channel):
            first = await RawStream(channel).open(session_id="a")
            await RawStream(channel).open(session_id="b")
            third = RawStream(channel)
            await third.send(open_message(session_id="c"))
            await until(lambda: server.admission.num_waiting == 1)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await third.receive()
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            trailers: Any = caught.value.trailing_metadata()
            assert float(dict(trailers)["retry-after-s"]) > 0
            await first.send(Close())
            assert isinstance(await first.receive(), Closed)
            await until(lambda: server.admission.num_sessions == 1)
            await RawStream(channel).open(session_id="c")

    run(scenario)


def test_a_session_that_waits_gets_the_next_place_in_order(served: Served) -> None:
    config = replace(served.config, max_sessions=1, max_waiting=2, max_wait_s=60.0)

    async def scenario() -> None:
        async with connected(config) as (server, channel):
            first = await RawStream(channel).open(session_id="a")
            waiting = []
            for index, name in enumerate("bc"):
                stream = RawStream(channel)
                await stream.send(open_message(session_id=name))
                await until(partial(num_waiting_is, server, index + 1))
                waiting.append(stream)
            beyond = RawStream(channel)
            await beyond.send(open_message(session_id="d"))
            assert (await beyond.refused())[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
            for leaving, next_one in zip([first, *waiting], waiting, strict=False):
                await leaving.send(Close())
                assert isinstance(await leaving.receive(), Closed)
                assert isinstance(await next_one.receive(), Opened)
            assert await generate(served, waiting[1], PROMPT, 3) == served.front.greedy(PROMPT, 3)

    run(scenario)


def test_a_client_that_leaves_the_queue_leaves_nothing_behind(served: Served) -> None:
    config = replace(served.config, max_sessions=1, max_wait_s=60.0)

    async def scenario() -> None:
        async with connected(config) as (server, channel):
            first = await RawStream(channel).open(session_id="a")
            gone = RawStream(channel)
            await gone.send(open_message(session_id="b"))
            await until(lambda: server.admission.num_waiting == 1)
            gone.call.cancel()
            await until(lambda: server.admission.num_waiting == 0)
            await first.send(Close())
            await first.receive()
            await until(lambda: server.admission.num_sessions == 0)
            assert server.pool.used_bytes == 0

    run(scenario)


def test_cancelling_and_disconnecting_free_the_cache(served: Served) -> None:
    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            stream = await RawStream(channel).open()
            await stream.ask(frame_of(served, 0, PROMPT, 0))
            stream.call.cancel()
            await until(lambda: server.pool.used_bytes == 0)
            other = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
            await RawStream(other).open()
            assert server.pool.used_bytes > 0
            await other.close(None)
            await until(lambda: server.pool.used_bytes == 0)
            assert server.admission.num_sessions == 0

    run(scenario)


def test_a_silent_session_is_evicted(served: Served) -> None:
    async def scenario() -> None:
        async with connected(replace(served.config, idle_ttl_s=1.0)) as (server, channel):
            stream = await RawStream(channel).open()
            code, reason = await stream.refused()
            assert code is grpc.StatusCode.ABORTED
            assert "silent" in reason
            await until(lambda: server.pool.used_bytes == 0)

    run(scenario)


def test_a_stream_that_never_says_what_it_wants_ends_soon(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud.server.stream.OPEN_TIMEOUT_S", 0.2)

    async def scenario() -> None:
        async with connected(replace(served.config, idle_ttl_s=300.0)) as (_, channel):
            code, reason = await RawStream(channel).refused()
            assert code is grpc.StatusCode.ABORTED
            assert "no Open" in reason

    run(scenario)


def test_two_thousand_sessions_cut_at_random_moments_leave_nothing_behind(
    served: Served,
) -> None:
    generator = np.random.default_rng(1)
    prefill = frame_of(served, 0, PROMPT, 0)
    expected = served.front.greedy(PROMPT, 1)

    async def one(channel: grpc.aio.Channel, index: int, cut: int) -> None:
        stream = RawStream(channel)
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


def test_draining_finishes_what_runs_and_takes_nothing_new(served: Served) -> None:
    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            stream = await RawStream(channel).open()
            first = await stream.ask(frame_of(served, 0, PROMPT, 0))
            draining = asyncio.create_task(server.drain(20))
            await until(lambda: server.admission.draining)
            late = RawStream(channel)
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
        stream = RawStream(channel, metadata)
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
            describe = calls_of(channel).unary_unary(wire.DESCRIBE_PATH)
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

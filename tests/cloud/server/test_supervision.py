"""A part that stops for good ends the server: health, sessions, opens; and who notices."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloud.engine.frame_work import FrameRun
from cloud.server.metrics import Metrics
from cloud.server.metrics_endpoint import MetricsEndpoint
from cloud.server.supervision import Supervisor
from protos import wire
from tests.cloud.serving import PROMPT, RawStream, Served, connected, frame_of, open_message, run

IDLE: Any = SimpleNamespace(due=lambda now_s: False, trim=lambda: None)


def test_the_first_trouble_is_told_once() -> None:
    async def scenario() -> None:
        told: list[str] = []
        answers = iter([None, None, "broken"])

        async def fail(trouble: str) -> None:
            told.append(trouble)

        checks = [lambda: next(answers), lambda: None]
        await Supervisor(checks, fail=fail, trimmer=IDLE).run()
        assert told == ["broken"]

    asyncio.run(scenario())


def test_the_metrics_thread_is_asked_too() -> None:
    endpoint = MetricsEndpoint(Metrics(), "127.0.0.1", 0, is_serving=lambda: True)
    assert endpoint.trouble() is None
    endpoint._server.shutdown()
    endpoint._thread.join()
    assert endpoint.trouble() == "the metrics thread died"
    endpoint.stop()


def test_after_a_dead_model_thread_nothing_is_granted_and_everything_ends(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise RuntimeError("outside every guard")

    monkeypatch.setattr(FrameRun, "note_wait", die)

    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            idle = await RawStream(channel).open(session_id="idle", resume_s=60.0)
            parked = await RawStream(channel).open(session_id="parked", resume_s=60.0)
            parked.call.cancel()
            busy = await RawStream(channel).open(session_id="busy")
            await busy.send(frame_of(served, 0, PROMPT, 0))
            assert "outside every guard" in await asyncio.wait_for(server.failure, 10)
            for stream in (idle, busy):
                assert (await stream.refused())[0] is grpc.StatusCode.UNAVAILABLE
            health = health_pb2_grpc.HealthStub(channel)
            for name in ("", wire.SERVICE_NAME):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
                assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
            late = RawStream(channel)
            await late.send(open_message(session_id="idle", resume_s=60.0))
            code, reason = await late.refused()
            assert code is grpc.StatusCode.UNAVAILABLE
            assert "go on elsewhere" in reason
            for _ in range(400):
                if not server.pool.used_bytes:
                    break
                await asyncio.sleep(0.01)
            assert server.pool.used_bytes == 0

    run(scenario)


def test_calls_without_a_request_end(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud.server.call_guard.REQUEST_TIMEOUT_S", 0.2)

    async def scenario() -> None:
        async with connected(replace(served.config)) as (_, channel):
            untyped: Any = channel
            for path in (wire.DESCRIBE_PATH, "/grpc.health.v1.Health/Watch"):
                call = untyped.stream_stream(path)()
                assert await call.code() is grpc.StatusCode.ABORTED
                assert "no request" in await call.details()

    run(scenario)


def test_an_address_has_few_watches(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud.server.call_guard.MAX_CALLS_PER_PEER", 2)

    async def scenario() -> None:
        async with connected(served.config) as (_, channel):
            health: Any = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service="")
            watches = [health.Watch(request) for _ in range(2)]
            for watch in watches:
                await watch.read()
            assert await health.Watch(request).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            watches[0].cancel()

    run(scenario)

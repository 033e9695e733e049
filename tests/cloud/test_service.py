"""What surrounds sessions: the line, resuming, limits, metrics, logs, handing back."""

from __future__ import annotations

import asyncio
import json
import logging
import urllib.request
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cloud.engine_loop import EngineLoop
from cloud.logs import JsonFormatter, trace_id
from cloud.service import InferenceService
from cloud.sessions import Session, Work
from protos.messages import Close, Closed, Frame, Opened, Result
from tests.cloud.test_server import (
    PROMPT,
    Served,
    Stream,
    _channel,
    connected,
    frame_of,
    generate,
    open_message,
    run,
    until,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(tmp_path_factory.mktemp("service"))


def metrics_of(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    return {
        sample.name + "".join(f"/{value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_session_that_waits_gets_the_next_place_in_order(served: Served) -> None:
    config = replace(served.config, max_sessions=1, max_waiting=2, max_wait_s=60.0)

    async def scenario() -> None:
        async with connected(config) as (server, channel):
            first = await Stream(channel).open(session_id="a")
            waiting = []
            for index, name in enumerate("bc"):
                stream = Stream(channel)
                await stream.send(open_message(session_id=name))
                await until(lambda count=index + 1: server.admission.num_waiting == count)
                waiting.append(stream)
            beyond = Stream(channel)
            await beyond.send(open_message(session_id="d"))
            assert (await beyond.refused())[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
            for leaving, next_one in zip([first, *waiting], waiting, strict=False):
                await leaving.send(Close())
                assert isinstance(await leaving.receive(), Closed)
                assert isinstance(await next_one.receive(), Opened)
            assert await generate(served, waiting[1], PROMPT, 3) == served.front.greedy(PROMPT, 3)

    run(scenario)


def test_a_client_that_leaves_the_line_leaves_nothing_behind(served: Served) -> None:
    config = replace(served.config, max_sessions=1, max_wait_s=60.0)

    async def scenario() -> None:
        async with connected(config) as (server, channel):
            first = await Stream(channel).open(session_id="a")
            gone = Stream(channel)
            await gone.send(open_message(session_id="b"))
            await until(lambda: server.admission.num_waiting == 1)
            gone.call.cancel()
            await until(lambda: server.admission.num_waiting == 0)
            await first.send(Close())
            await first.receive()
            await until(lambda: server.admission.num_sessions == 0)
            assert server.pool.used_bytes == 0

    run(scenario)


def test_a_broken_stream_is_resumed_without_replay_and_with_the_same_tokens(
    served: Served,
) -> None:
    expected = served.front.greedy(PROMPT, 6)

    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            stream = await Stream(channel).open(session_id="r", resume_s=60.0)
            first = await stream.ask(frame_of(served, 0, PROMPT, 0))
            tokens = [*PROMPT, *first.token_ids]
            outstanding = frame_of(served, 1, tokens, len(PROMPT))
            await stream.send(outstanding)
            await until(lambda: server.admission.num_sessions == 1)
            stream.call.cancel()
            held = server.pool.used_bytes
            assert held > 0
            again = Stream(channel)
            await again.send(open_message(session_id="r", resume_s=60.0))
            opened = await again.receive()
            assert isinstance(opened, Opened)
            assert opened.held_frames in (1, 2)  # the second may have been lost on the way
            assert server.pool.used_bytes == held
            answer = await again.ask(outstanding)
            tokens += answer.token_ids
            for sequence in range(2, 6):
                frame = frame_of(served, sequence, tokens, len(tokens) - 1)
                tokens += (await again.ask(frame)).token_ids
            assert tokens[len(PROMPT) :] == expected
            await again.send(Close())
            await again.receive()
            assert server.pool.used_bytes == 0

    run(scenario)


def test_a_parked_session_is_freed_after_its_time_or_when_room_is_needed(served: Served) -> None:
    config = replace(served.config, max_sessions=1, max_wait_s=30.0)

    async def scenario() -> None:
        async with connected(config) as (server, channel):
            stream = await Stream(channel).open(session_id="p", resume_s=60.0)
            stream.call.cancel()
            await asyncio.sleep(0.1)
            assert server.admission.num_sessions == 1
            other = await Stream(channel).open(session_id="q", resume_s=0.2)  # takes its place
            other.call.cancel()
            await until(lambda: server.admission.num_sessions == 0)
            assert server.pool.used_bytes == 0
            late = Stream(channel)
            await late.send(open_message(session_id="q", resume_s=0.2))
            opened = await late.receive()
            assert isinstance(opened, Opened)
            assert opened.held_frames == 0

    run(scenario)


def test_another_tenant_cannot_resume_a_session_or_use_up_its_limits(
    served: Served, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("one name=one sessions=1\ntwo name=two\n")
    access = replace(served.config.access, token_file=tokens)
    one, two = ((("authorization", f"Bearer {name}"),) for name in ("one", "two"))

    async def scenario() -> None:
        async with connected(replace(served.config, access=access)) as (server, channel):
            stream = await Stream(channel, one).open(session_id="x", resume_s=60.0)
            await stream.ask(frame_of(served, 0, PROMPT, 0))
            stream.call.cancel()
            thief = Stream(channel, two)
            await thief.send(open_message(session_id="x", resume_s=60.0))
            opened = await thief.receive()
            assert isinstance(opened, Opened)
            assert opened.held_frames == 0
            assert server.admission.num_sessions == 2
            more = Stream(channel, one)
            await more.send(open_message(session_id="y"))
            code, reason = await more.refused()
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "one" in reason
            back = Stream(channel, one)
            await back.send(open_message(session_id="x", resume_s=60.0))
            answer = await back.receive()
            assert isinstance(answer, Opened)
            assert answer.held_frames == 1

    run(scenario)


def test_draining_hands_sessions_back_when_time_is_up(served: Served) -> None:
    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            stream = await Stream(channel).open(resume_s=60.0)
            await stream.ask(frame_of(served, 0, PROMPT, 0))
            draining = asyncio.create_task(server.drain(0.2))
            code, reason = await stream.refused()
            assert code is grpc.StatusCode.UNAVAILABLE
            assert "elsewhere" in reason
            await draining
            await until(lambda: server.pool.used_bytes == 0)

    run(scenario)


def test_metrics_count_what_happened(served: Served) -> None:
    async def scenario() -> None:
        config = replace(served.config, metrics_port=0)
        async with connected(config) as (server, channel):
            assert server.metrics_port is not None
            stream = await Stream(channel).open()
            await generate(served, stream, PROMPT, 5)
            bad = await Stream(channel).open(session_id="bad")
            await bad.send(Frame(sequence=0, first_position=0, token_ids=(1,), hidden=b"x"))
            await bad.refused()
            seen = await asyncio.to_thread(metrics_of, server.metrics_port)
            assert seen["splitpoint_tokens_total"] == 5
            assert seen["splitpoint_ttft_seconds_count"] == 1
            assert seen["splitpoint_tbt_seconds_count"] == 4
            assert seen["splitpoint_batch_rows_sum"] == len(PROMPT) + 4
            assert seen["splitpoint_errors_total/BadFrameError"] == 1
            assert seen["splitpoint_sessions"] == 1
            assert seen["splitpoint_kv_blocks_used"] == server.pool.used_blocks > 0
            assert seen["splitpoint_message_bytes_total/up"] > 4 * 64 * len(PROMPT)

    run(scenario)


def test_logs_are_json_with_ids_and_without_contents(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "0123456789abcdef0123456789abcdef"

    async def scenario() -> None:
        async with connected(served.config) as (_, channel):
            stream = await Stream(channel, (PARENT,)).open(session_id=secret)
            await generate(served, stream, PROMPT, 2)
            await stream.send(Close())
            await stream.receive()

    with caplog.at_level(logging.INFO, logger="cloud"):
        run(scenario)
    lines: list[dict[str, Any]] = [
        json.loads(JsonFormatter().format(record)) for record in caplog.records
    ]
    ended = next(line for line in lines if line["event"] == "session_ended")
    assert (ended["session"], ended["trace_id"], ended["tokens"]) == (secret[:8], TRACE, 2)
    assert not any(secret in json.dumps(line) for line in lines)


@pytest.mark.parametrize("value", [None, "", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", "rubbish"])
def test_a_malformed_traceparent_is_no_trace(value: str | None) -> None:
    assert trace_id(value) is None


def test_a_tenants_rate_holds_its_frames_back_and_no_one_elses(
    served: Served, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("slow name=slow tokens_per_s=20\nfast name=fast\n")
    access = replace(served.config.access, token_file=tokens)

    async def scenario() -> None:
        async with connected(replace(served.config, access=access)) as (server, _):
            slow_channel, fast_channel = _channel(server.port), _channel(server.port)
            slow = await Stream(slow_channel, (("authorization", "Bearer slow"),)).open()
            fast = await Stream(fast_channel, (("authorization", "Bearer fast"),)).open()
            rows = (PROMPT * 8)[:60]
            begun = asyncio.get_running_loop().time()
            await slow.send(frame_of(served, 0, rows, 0, want_token=False))
            waiting = asyncio.create_task(slow.receive())
            assert await generate(served, fast, PROMPT, 2) == served.front.greedy(PROMPT, 2)
            assert isinstance(await waiting, Result)
            # 60 rows, 20 of them saved up: the other 40 take two seconds.
            assert asyncio.get_running_loop().time() - begun >= 1.9
            await slow_channel.close()
            await fast_channel.close()

    run(scenario)


def test_two_streams_of_one_name_leave_nothing_behind(served: Served) -> None:
    """Both in line at once, so neither found the other; and both would be kept when they break."""
    config = replace(served.config, max_sessions=2, max_wait_s=60.0)

    async def scenario() -> None:
        async with connected(config) as (server, channel):
            first = await Stream(channel).open(session_id="a")
            second = await Stream(channel).open(session_id="b")
            twins = [Stream(channel), Stream(channel)]
            for index, twin in enumerate(twins):
                await twin.send(open_message(session_id="twin", resume_s=0.3))
                await until(lambda count=index + 1: server.admission.num_waiting == count)
            for stream in (first, second):
                await stream.send(Close())
                await stream.receive()
            assert isinstance(await twins[1].receive(), Opened)
            for twin in twins:
                twin.call.cancel()
            await until(lambda: server.admission.num_sessions == 0)
            assert server.pool.used_bytes == 0

    run(scenario)


def test_room_for_one_takes_no_more_parked_sessions_than_it_needs(served: Served) -> None:
    def of_tokens(count: int) -> int:
        return 2 * 2 * 2 * 16 * 4 * count

    config = replace(
        served.config, kv_memory_bytes=of_tokens(4 * 32), max_sessions=8, max_wait_s=30.0
    )

    async def scenario() -> None:
        async with connected(config) as (server, channel):
            for name in "abcd":
                stream = await Stream(channel).open(session_id=name, max_tokens=32, resume_s=60.0)
                stream.call.cancel()
            await asyncio.sleep(0.1)
            await Stream(channel).open(session_id="e", max_tokens=64)
            assert server.admission.num_sessions == 3  # "a" and "b" made room, "c" and "d" stay

    run(scenario)


def test_a_tenant_has_no_more_sessions_by_standing_in_line(served: Served, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("one name=one sessions=1\ntwo name=two\n")
    access = replace(served.config.access, token_file=tokens)
    config = replace(served.config, access=access, max_sessions=1, max_wait_s=60.0)
    one, two = ((("authorization", f"Bearer {name}"),) for name in ("one", "two"))

    async def scenario() -> None:
        async with connected(config) as (server, channel):
            await Stream(channel, two).open(session_id="x")
            waiting = Stream(channel, one)
            await waiting.send(open_message(session_id="y"))
            await until(lambda: server.admission.num_waiting == 1)
            more = Stream(channel, one)
            await more.send(open_message(session_id="z"))
            assert (await more.refused())[0] is grpc.StatusCode.RESOURCE_EXHAUSTED

    run(scenario)


def test_a_fault_in_taking_in_a_frame_ends_that_session_alone(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Session.begin

    def faulty(session: Session, frame: Frame) -> Work | Result:
        if session.session_id == "bad":
            raise MemoryError("no room")
        return begin(session, frame)

    monkeypatch.setattr(Session, "begin", faulty)

    async def scenario() -> None:
        async with connected(served.config) as (_, channel):
            bad = await Stream(channel).open(session_id="bad")
            await bad.send(frame_of(served, 0, PROMPT, 0))
            assert (await bad.refused())[0] is grpc.StatusCode.INTERNAL
            good = await Stream(channel).open(session_id="good")
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
            stream = await Stream(channel).open()
            await stream.send(frame_of(served, 0, PROMPT, 0))
            assert (await stream.refused())[0] is grpc.StatusCode.INTERNAL
            await until(lambda: server.pool.used_bytes == 0)

    run(scenario)


def test_a_frame_far_larger_than_its_rows_is_refused_before_it_is_queued(served: Served) -> None:
    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            stream = await Stream(channel).open()
            await stream.send(frame_of(served, 0, PROMPT, 0, hidden=bytes(100_000)))
            code, reason = await stream.refused()
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "rows need" in reason
            await until(lambda: server.pool.used_bytes == 0)

    run(scenario)


def test_a_client_that_goes_while_it_is_freed_does_not_give_its_place_away_early() -> None:
    async def scenario() -> None:
        freed: Future[None] = Future()
        left: list[bool] = []
        engine_loop, admission = Mock(), Mock()
        engine_loop.close.return_value = freed
        admission.leave.side_effect = lambda _: left.append(freed.done())
        service = InferenceService(admission, engine_loop)
        running = Mock(moved=False, request=open_message())
        running.stream.write = AsyncMock()
        running.stream.write_answers = AsyncMock()
        running.stream.read_frames = AsyncMock()
        running.stream.said_close = True
        running.stream.opened_s = 0.0
        task = asyncio.create_task(service._converse(running, 0))
        while not engine_loop.close.called:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait({task})
        await asyncio.sleep(0.01)
        assert left == []
        freed.set_result(None)
        await asyncio.sleep(0.01)
        assert left == [True]

    run(scenario)

"""Sessions that outlive their stream: resumable, resumed, replaced, handed back; and tenants."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path

import grpc
import pytest

from protos.messages import (
    Close,
    Opened,
    Result,
)
from tests.cloud.serving import (
    PROMPT,
    RawStream,
    Served,
    channel_to,
    connected,
    frame_of,
    generate,
    num_waiting_is,
    open_message,
    run,
    until,
)


def test_a_broken_stream_is_resumed_without_replay_and_with_the_same_tokens(
    served: Served,
) -> None:
    expected = served.front.greedy(PROMPT, 6)

    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            stream = await RawStream(channel).open(session_id="r", resume_s=60.0)
            first = await stream.ask(frame_of(served, 0, PROMPT, 0))
            tokens = [*PROMPT, *first.token_ids]
            outstanding = frame_of(served, 1, tokens, len(PROMPT))
            await stream.send(outstanding)
            await until(lambda: server.admission.num_sessions == 1)
            stream.call.cancel()
            held = server.pool.used_bytes
            assert held > 0
            again = RawStream(channel)
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


def test_a_resumable_session_is_freed_after_its_time_or_when_room_is_needed(served: Served) -> None:
    config = replace(served.config, max_sessions=1, max_wait_s=30.0)

    async def scenario() -> None:
        async with connected(config) as (server, channel):
            stream = await RawStream(channel).open(session_id="p", resume_s=60.0)
            stream.call.cancel()
            await asyncio.sleep(0.1)
            assert server.admission.num_sessions == 1
            other = await RawStream(channel).open(session_id="q", resume_s=0.2)  # takes its place
            other.call.cancel()
            await until(lambda: server.admission.num_sessions == 0)
            assert server.pool.used_bytes == 0
            late = RawStream(channel)
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
            stream = await RawStream(channel, one).open(session_id="x", resume_s=60.0)
            await stream.ask(frame_of(served, 0, PROMPT, 0))
            stream.call.cancel()
            thief = RawStream(channel, two)
            await thief.send(open_message(session_id="x", resume_s=60.0))
            opened = await thief.receive()
            assert isinstance(opened, Opened)
            assert opened.held_frames == 0
            assert server.admission.num_sessions == 2
            back = RawStream(channel, one)
            await back.send(open_message(session_id="x", resume_s=60.0))
            answer = await back.receive()
            assert isinstance(answer, Opened)
            assert answer.held_frames == 1
            more = RawStream(channel, one)
            await more.send(open_message(session_id="y"))
            code, reason = await more.refused()
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "one" in reason

    run(scenario)


@pytest.mark.parametrize("session_id", ["x", "y"], ids=["same name, other terms", "another name"])
def test_a_tenant_that_has_all_its_sessions_resumable_may_begin_a_new_one(
    served: Served, tmp_path: Path, session_id: str
) -> None:
    """An edge that was started again must not wait for its own past to run out."""
    tokens = tmp_path / "tokens"
    tokens.write_text("one name=one sessions=1\ntwo name=two\n")
    access = replace(served.config.access, token_file=tokens)
    one, two = ((("authorization", f"Bearer {name}"),) for name in ("one", "two"))

    async def scenario() -> None:
        async with connected(replace(served.config, access=access)) as (server, channel):
            others = await RawStream(channel, two).open(session_id="z", resume_s=60.0)
            others.call.cancel()
            stream = await RawStream(channel, one).open(session_id="x", resume_s=60.0)
            stream.call.cancel()
            await asyncio.sleep(0.1)
            anew = RawStream(channel, one)
            await anew.send(open_message(session_id=session_id, max_tokens=48))
            opened = await anew.receive()
            assert isinstance(opened, Opened)
            assert opened.held_frames == 0
            # Its own gave way, and freed its memory; the other tenant's did not.
            await until(lambda: server.admission.num_sessions == 2)
            more = RawStream(channel, one)
            await more.send(open_message(session_id="w"))
            assert (await more.refused())[0] is grpc.StatusCode.RESOURCE_EXHAUSTED

    run(scenario)


def test_draining_hands_sessions_back_when_time_is_up(served: Served) -> None:
    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            stream = await RawStream(channel).open(resume_s=60.0)
            await stream.ask(frame_of(served, 0, PROMPT, 0))
            draining = asyncio.create_task(server.drain(0.2))
            code, reason = await stream.refused()
            assert code is grpc.StatusCode.UNAVAILABLE
            assert "elsewhere" in reason
            await draining
            await until(lambda: server.pool.used_bytes == 0)

    run(scenario)


@pytest.mark.parametrize("is_parked", [True, False], ids=["parked", "on a dead stream"])
def test_a_draining_server_lets_nobody_resume_a_session(served: Served, is_parked: bool) -> None:
    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            other = await RawStream(channel).open(session_id="runs-on")
            stream = await RawStream(channel).open(session_id="p", resume_s=60.0)
            await stream.ask(frame_of(served, 0, PROMPT, 0))
            held = server.pool.used_bytes
            if is_parked:
                stream.call.cancel()
                await until(lambda: server.admission.num_resumable == 1)
            draining = asyncio.create_task(server.drain(20))
            await until(lambda: server.admission.draining)
            again = RawStream(channel)
            await again.send(open_message(session_id="p", resume_s=60.0))
            assert (await again.refused())[0] is grpc.StatusCode.UNAVAILABLE
            await until(lambda: server.pool.used_bytes == held // 2)
            assert await generate(served, other, PROMPT, 2) == served.front.greedy(PROMPT, 2)
            await other.send(Close())
            await draining

    run(scenario)


def test_a_session_opened_again_replaces_its_dead_stream(served: Served) -> None:
    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            old = await RawStream(channel).open(session_id="same")
            held = server.pool.used_bytes
            new = await RawStream(channel).open(session_id="same")
            assert (await old.refused())[0] is grpc.StatusCode.ABORTED
            await until(lambda: server.pool.used_bytes == held)
            assert await generate(served, new, PROMPT, 3) == served.front.greedy(PROMPT, 3)

    run(scenario)


def test_two_streams_of_one_name_leave_nothing_behind(served: Served) -> None:
    """Both wait at once, so neither found the other; and both would be kept when they break."""
    config = replace(served.config, max_sessions=2, max_wait_s=60.0)

    async def scenario() -> None:
        async with connected(config) as (server, channel):
            first = await RawStream(channel).open(session_id="a")
            second = await RawStream(channel).open(session_id="b")
            twins = [RawStream(channel), RawStream(channel)]
            for index, twin in enumerate(twins):
                await twin.send(open_message(session_id="twin", resume_s=0.3))
                await until(partial(num_waiting_is, server, index + 1))
            for stream in (first, second):
                await stream.send(Close())
                await stream.receive()
            assert isinstance(await twins[1].receive(), Opened)
            for twin in twins:
                twin.call.cancel()
            await until(lambda: server.admission.num_sessions == 0)
            assert server.pool.used_bytes == 0

    run(scenario)


def test_room_for_one_takes_no_more_resumable_sessions_than_it_needs(served: Served) -> None:
    def of_tokens(count: int) -> int:
        return 2 * 2 * 2 * 16 * 4 * count

    config = replace(
        served.config, kv_memory_bytes=of_tokens(4 * 32), max_sessions=8, max_wait_s=30.0
    )

    async def scenario() -> None:
        async with connected(config) as (server, channel):
            for name in "abcd":
                stream = await RawStream(channel).open(
                    session_id=name, max_tokens=32, resume_s=60.0
                )
                stream.call.cancel()
            await asyncio.sleep(0.1)
            await RawStream(channel).open(session_id="e", max_tokens=64)
            assert server.admission.num_sessions == 3  # "a" and "b" made room, "c" and "d" stay

    run(scenario)


def test_a_tenant_has_no_more_sessions_by_waiting_in_the_queue(
    served: Served, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("one name=one sessions=1\ntwo name=two\n")
    access = replace(served.config.access, token_file=tokens)
    config = replace(served.config, access=access, max_sessions=1, max_wait_s=60.0)
    one, two = ((("authorization", f"Bearer {name}"),) for name in ("one", "two"))

    async def scenario() -> None:
        async with connected(config) as (server, channel):
            await RawStream(channel, two).open(session_id="x")
            waiting = RawStream(channel, one)
            await waiting.send(open_message(session_id="y"))
            await until(lambda: server.admission.num_waiting == 1)
            more = RawStream(channel, one)
            await more.send(open_message(session_id="z"))
            assert (await more.refused())[0] is grpc.StatusCode.RESOURCE_EXHAUSTED

    run(scenario)


def test_a_tenants_rate_holds_its_frames_back_and_no_one_elses(
    served: Served, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("slow name=slow tokens_per_s=20\nfast name=fast\n")
    access = replace(served.config.access, token_file=tokens)

    async def scenario() -> None:
        async with connected(replace(served.config, access=access)) as (server, _):
            slow_channel, fast_channel = channel_to(server.port), channel_to(server.port)
            slow = await RawStream(slow_channel, (("authorization", "Bearer slow"),)).open()
            fast = await RawStream(fast_channel, (("authorization", "Bearer fast"),)).open()
            rows = (PROMPT * 8)[:60]
            begun = asyncio.get_running_loop().time()
            await slow.send(frame_of(served, 0, rows, 0, want_token=False))
            waiting = asyncio.create_task(slow.receive())
            assert await generate(served, fast, PROMPT, 2) == served.front.greedy(PROMPT, 2)
            assert isinstance(await waiting, Result)
            # 60 rows, 20 of them saved up: the other 40 take two seconds.
            assert asyncio.get_running_loop().time() - begun >= 1.9
            await slow_channel.close(None)
            await fast_channel.close(None)

    run(scenario)

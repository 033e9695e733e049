"""Two servers behind a real HAProxy: where streams go, and what gets through."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloud.cluster.book import ReplicaBook
from cloud.cluster.door import POLL_S, DoorSettings, DoorThread
from cloud.cluster.serving_thread import ServingThread
from cloud.errors import DrainingError
from protos.messages import Opened
from tests.cloud.cluster.haproxy import HAPROXY, WHY_NOT, free_address
from tests.cloud.serving import PROMPT, RawStream, Served, channel_to, frame_of, open_message

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "there is one")


class Pair:
    """Replicas r1 and r2 of two sessions each, their book in this process, and the door."""

    def __init__(self, root: Path) -> None:
        self.served = Served(root)
        self.book = ReplicaBook()
        config = replace(self.served.config, threads=1, max_sessions=2, max_waiting=0, drain_s=0.0)
        self.servers = {
            name: ServingThread(replace(config, replica=name), self._ask) for name in ("r1", "r2")
        }
        for server in self.servers.values():
            server.ready.result(120)
        self.address, self.metrics = free_address(), free_address()
        settings = DoorSettings(port=self.address.port, most_replicas=2, metrics=self.metrics)
        self.door = DoorThread(
            HAPROXY or "", settings, roll=self.book.roll, sights=self.book.sights
        )
        self.door.ready.result(10)
        self.wait(lambda: len(self.door.view.replicas) == 2)
        time.sleep(0.5)  # until HAProxy has been told

    async def _ask(self, method: str, *arguments: Any) -> Any:
        return getattr(self.book, method)(*arguments)

    def num_sessions(self, name: str) -> int:
        return self.servers[name].ready.result().admission.num_sessions

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline_s
            time.sleep(0.02)

    def run(self, scenario: Callable[[grpc.aio.Channel], Awaitable[None]]) -> None:
        async def bounded() -> None:
            async with channel_to(self.address.port) as channel:
                await asyncio.wait_for(scenario(channel), 60)

        asyncio.run(bounded())
        self.wait(lambda: not any(self.num_sessions(name) for name in self.servers))

    def close(self) -> None:
        self.door.stop()
        for server in self.servers.values():
            server.stop()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = Pair(tmp_path_factory.mktemp("pair"))
    yield made
    made.close()


async def opened(
    channel: grpc.aio.Channel, metadata: dict[str, str], **changes: Any
) -> tuple[RawStream, str, Opened]:
    """A stream, which replica has it, and its first answer."""
    stream = RawStream(channel, metadata=tuple(metadata.items()))
    await stream.send(open_message(**changes))
    answer = await stream.receive()
    assert isinstance(answer, Opened)
    return stream, dict(await stream.call.initial_metadata())["x-replica"], answer


async def ended(stream: RawStream, pair: Pair, name: str) -> None:
    """Break a stream, and wait until the replica and HAProxy have noticed."""
    stream.call.cancel()
    while pair.num_sessions(name):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)


def test_equal_names_meet_and_a_named_replica_is_obeyed(pair: Pair) -> None:
    async def scenario(channel: grpc.aio.Channel) -> None:
        by_hash: dict[str, str] = {}
        for index in range(12):
            for _ in range(2):
                key = f"key-{index}"
                stream, name, _ = await opened(channel, {"x-session-id": key})
                await ended(stream, pair, name)
                assert by_hash.setdefault(key, name) == name
        assert set(by_hash.values()) == {"r1", "r2"}
        for wanted in ("r1", "r2"):
            asked = {"x-session-id": "key-0", "x-replica": wanted}
            stream, name, _ = await opened(channel, asked)
            await ended(stream, pair, name)
            assert name == wanted

    pair.run(scenario)


def test_a_broken_stream_goes_on_where_its_session_is(pair: Pair) -> None:
    async def scenario(channel: grpc.aio.Channel) -> None:
        frame = frame_of(pair.served, 0, PROMPT, 0, want_token=False)
        terms = {"session_id": "kept", "resume_s": 30.0}
        stream, home, _ = await opened(channel, {"x-session-id": "kept"}, **terms)
        await stream.ask(frame)
        stream.call.cancel()
        await asyncio.sleep(0.3)
        asked = {"x-session-id": "kept", "x-replica": home}
        stream, name, answer = await opened(channel, asked, **terms)
        assert (name, answer.held_frames) == (home, 1)
        stream.call.cancel()
        await asyncio.sleep(0.3)
        # Another one has to begin anew, and the first one need not keep it any longer.
        (other,) = {"r1", "r2"} - {home}
        async with channel_to(pair.servers[other].ready.result().port) as direct:
            stream, name, answer = await opened(direct, asked, session_id="kept")
            assert (name, answer.held_frames) == (other, 0)
            stream.call.cancel()

    pair.run(scenario)  # which waits until no replica has a session


def test_a_refusal_gets_through_and_names_the_replica_with_room(pair: Pair) -> None:
    async def scenario(channel: grpc.aio.Channel) -> None:
        asked = {"x-session-id": "a", "x-replica": "r1"}
        held = [await opened(channel, asked, session_id=f"held-{index}") for index in range(2)]
        assert [name for _, name, _ in held] == ["r1", "r1"]
        await asyncio.sleep(0.6)  # until the replicas have heard of each other
        stream = RawStream(channel, metadata=tuple(asked.items()))
        await stream.send(open_message(session_id="third"))
        status, detail = await stream.refused()
        assert status is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert detail == "all 2 sessions are taken"
        trailers = dict(await stream.call.trailing_metadata())
        assert (trailers["x-replica"], trailers["retry-after-s"]) == ("r2", "0.1")
        for one, _, _ in held:
            one.call.cancel()

    pair.run(scenario)


def test_a_new_book_takes_nobodys_place(pair: Pair) -> None:
    """It hears of the replicas one after the other, and the door goes on meanwhile."""
    born = ReplicaBook()
    born.report(next(one for one in pair.book.replicas() if one.name == "r2"))
    pair.door._ask_roll = born.roll

    async def scenario(channel: grpc.aio.Channel) -> None:
        await asyncio.sleep(3 * POLL_S)
        for wanted in ("r1", "r2"):
            stream, name, _ = await opened(channel, {"x-replica": wanted})
            await ended(stream, pair, name)
            assert name == wanted

    try:
        pair.run(scenario)
    finally:
        pair.door._ask_roll = pair.book.roll


def test_who_names_a_replica_that_drains_is_sent_on(pair: Pair) -> None:
    """Its sessions may go on for long, so it is there for long."""

    async def scenario(channel: grpc.aio.Channel) -> None:
        held, home, _ = await opened(channel, {"x-replica": "r1"}, session_id="goes-on")
        assert home == "r1"
        admission = pair.servers["r1"].ready.result().admission
        refuse = DrainingError("this server is shutting down")
        pair.servers["r1"]._loop.call_soon_threadsafe(admission.refuse_all, refuse)
        await asyncio.sleep(0.8)
        stream, name, _ = await opened(channel, {"x-replica": "r1"}, session_id="comes-back")
        assert name == "r2"
        await ended(stream, pair, name)
        await held.ask(frame_of(pair.served, 0, PROMPT, 0, want_token=False))
        await ended(held, pair, home)

    pair.run(scenario)


def test_a_replica_that_drains_gets_no_new_streams(pair: Pair) -> None:
    async def scenario(channel: grpc.aio.Channel) -> None:
        pair.servers["r1"].stop()
        await asyncio.sleep(0.6)
        for index in range(8):
            asked = {"x-session-id": f"key-{index}", "x-replica": "r1"}
            stream, name, _ = await opened(channel, asked)
            await ended(stream, pair, name)
            assert name == "r2"

    pair.run(scenario)

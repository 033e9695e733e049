"""A replica's way to the others: few questions, and limits of its own while the book is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cloud.cluster.book import ReplicaBook, ReplicaReport
from cloud.cluster.together import AHEAD_S, AWAY_S, Together
from cloud.errors import CapacityError
from cloud.sessions.lifecycle import SessionKey
from cloud.sessions.siblings import Elsewhere
from cloud.sessions.tenants import Tenant
from tests.cloud.cluster.test_book import Clock, report

LIMITED = Tenant(name="t", sessions=1, tokens_per_s=100.0)


class NearBook:
    """A book in this process, which may be away."""

    def __init__(self, clock: Clock) -> None:
        self.book = ReplicaBook(clock)
        self.is_away = False
        self.asked: list[str] = []

    async def __call__(self, method: str, *arguments: Any) -> Any:
        self.asked.append(method)
        if self.is_away:
            raise ConnectionError
        return getattr(self.book, method)(*arguments)


class Pair:
    def __init__(self) -> None:
        self.clock = Clock()
        self.book = NearBook(self.clock)
        self.a, self.b = (Together(name, self.book, clock=self.clock) for name in "ab")


def run(scenario: Callable[[Pair], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario(Pair()), 30)

    asyncio.run(bounded())


async def beat(one: Together, said: ReplicaReport) -> tuple[str, ...]:
    """One report of `run`, and what it was told to close."""
    closed: list[tuple[str, ...]] = []
    task = asyncio.create_task(one.run(lambda: said, closed.append))
    while not closed:
        await asyncio.sleep(0)
    task.cancel()
    return closed[0]


def test_rows_are_fetched_ahead_and_wait_for_all_replicas_together() -> None:
    async def scenario(pair: Pair) -> None:
        for _ in range(int(AHEAD_S * 100)):
            assert await pair.a.wait_s(LIMITED, 1, at_s=0.0) == 0.0
        assert pair.book.asked == ["take_rows"]
        assert await pair.b.wait_s(LIMITED, 90, at_s=0.0) == 0.0
        assert await pair.a.wait_s(LIMITED, 50, at_s=0.0) == pytest.approx(0.5)
        assert await pair.b.wait_s(LIMITED, 1, at_s=0.0) == pytest.approx(0.6)
        pair.clock.now_s = 0.4
        assert await pair.b.wait_s(LIMITED, 1, at_s=0.0) == pytest.approx(0.2)

    run(scenario)


def test_who_has_no_limit_never_asks() -> None:
    async def scenario(pair: Pair) -> None:
        free = Tenant(name="free")
        assert await pair.a.wait_s(free, 10**6, at_s=0.0) == 0.0
        await pair.a.check_place(free, SessionKey("free", "s"), 9)
        assert pair.book.asked == []

    run(scenario)


def test_a_tenants_places_are_those_of_all_replicas() -> None:
    async def scenario(pair: Pair) -> None:
        await beat(pair.a, report("a"))
        await beat(pair.b, report("b"))
        await pair.a.check_place(LIMITED, SessionKey("t", "one"), 1)
        with pytest.raises(CapacityError, match="t has all its 1 sessions open") as caught:
            await pair.b.check_place(LIMITED, SessionKey("t", "two"), 1)
        assert not caught.value.elsewhere

    run(scenario)


def test_without_the_book_limits_hold_for_each_replica_and_the_log_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(pair: Pair) -> None:
        pair.book.is_away = True
        for at_s in (0.0, 0.5 * AWAY_S, AWAY_S + 0.1):
            pair.clock.now_s = at_s
            await pair.a.check_place(LIMITED, SessionKey("t", "one"), 1)
        assert pair.book.asked == ["may_begin"] * 2  # it is left alone for a while
        assert await pair.a.wait_s(LIMITED, 100, at_s=0.0) == 0.0
        assert await pair.a.wait_s(LIMITED, 100, at_s=0.0) == pytest.approx(1.0)
        assert [record.message for record in caplog.records] == [
            "the book of the replicas is away (ConnectionError): "
            "tenants' limits hold for each replica"
        ]
        pair.book.is_away = False
        pair.clock.now_s = 3 * AWAY_S
        await pair.a.check_place(LIMITED, SessionKey("t", "one"), 1)
        assert caplog.records[-1].message.startswith("the book is back")

    with caplog.at_level(logging.WARNING):
        run(scenario)


def test_the_replica_with_room_is_known_from_the_last_report() -> None:
    async def scenario(pair: Pair) -> None:
        assert pair.a.with_room() is None
        await beat(pair.b, report("b"))
        await beat(pair.a, report("a"))
        assert pair.a.with_room() == Elsewhere("b", 0.1)
        pair.clock.now_s = AWAY_S + 0.1
        assert pair.a.with_room() is None

    run(scenario)


def test_what_another_replica_took_over_is_to_be_closed() -> None:
    async def scenario(pair: Pair) -> None:
        await beat(pair.a, report("a"))
        pair.b.took_over(SessionKey("t", "one"), "a")
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(await beat(pair.a, report("a"))) == 1

    run(scenario)

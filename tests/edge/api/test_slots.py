"""Slots: never more than there are, given back once, and none left at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from edge.api.errors import ApiError
from edge.api.slots import AnswerSlots
from tests.edge.api.test_stream import Run


def test_a_slot_that_is_taken_is_refused_with_a_time_to_come_again() -> None:
    async def scene() -> None:
        slots = AnswerSlots(1)
        await slots.take()
        with pytest.raises(ApiError) as checked:
            slots.check()
        with pytest.raises(ApiError) as taken:
            await slots.take()
        for caught in (checked, taken):
            assert caught.value.status == 429
            assert int(caught.value.headers["Retry-After"]) >= 1
        slots.free()
        slots.check()

    asyncio.run(scene())


def test_requests_wait_in_the_order_in_which_they_came() -> None:
    async def scene() -> list[int]:
        slots = AnswerSlots(1, queue=2)
        await slots.take()
        order: list[int] = []

        async def come(number: int) -> None:
            await slots.take()
            order.append(number)

        waiting = [asyncio.ensure_future(come(number)) for number in range(2)]
        await asyncio.sleep(0)
        assert slots.num_waiting == 2
        with pytest.raises(ApiError, match="1 requests are running already, and 2 wait"):
            await slots.take()
        for _ in waiting:
            slots.free()
            await asyncio.sleep(0.01)
        assert slots.num_taken == 1
        slots.free()
        assert slots.num_taken == 0
        return order

    assert asyncio.run(scene()) == [0, 1]


def test_who_stops_waiting_leaves_no_hole() -> None:
    async def scene() -> None:
        slots = AnswerSlots(1, queue=2, max_wait_s=0.02)
        await slots.take()
        gone = asyncio.ensure_future(slots.take())
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        with pytest.raises(ApiError, match="running already"):  # waited too long
            await slots.take()
        assert (slots.num_taken, slots.num_waiting) == (1, 0)
        slots.free()
        await slots.take()
        assert slots.num_taken == 1

    asyncio.run(scene())


def test_a_generation_gives_its_slot_back_when_it_ends() -> None:
    async def scene() -> int:
        slots = AnswerSlots(1)
        await slots.take()
        run: Any = Run()
        run.may_begin.clear()
        answer = slots.run(run)
        assert slots.num_taken == 1
        run.may_begin.set()
        async for _ in answer.pieces():
            pass
        return slots.num_taken

    assert asyncio.run(scene()) == 0


def test_the_end_waits_until_every_generation_has_ended() -> None:
    async def scene() -> None:
        slots = AnswerSlots(2)
        runs: list[Any] = [Run(waits=True), Run(waits=True)]
        for run in runs:
            await slots.take()
            slots.run(run)
        await slots.end_all(within_s=10.0)
        assert all(run.cancelled.is_set() for run in runs)
        assert slots.num_taken == 0

    asyncio.run(scene())


def test_the_end_does_not_wait_for_a_generation_that_does_not_hear() -> None:
    class Deaf(Run):
        def __iter__(self) -> Iterator[Any]:
            self.may_begin.wait(10)
            return iter(())

    async def scene() -> None:
        slots = AnswerSlots(1)
        run: Any = Deaf()
        run.may_begin.clear()
        await slots.take()
        slots.run(run)
        await slots.end_all(within_s=0.05)
        assert slots.num_taken == 1
        run.may_begin.set()

    asyncio.run(scene())

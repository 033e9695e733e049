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
    slots = AnswerSlots(1)
    slots.take()
    for refused in (slots.check, slots.take):
        with pytest.raises(ApiError) as caught:
            refused()
        assert caught.value.status == 429
        assert int(caught.value.headers["Retry-After"]) >= 1
    slots.free()
    slots.check()


def test_a_generation_gives_its_slot_back_when_it_ends() -> None:
    async def scene() -> int:
        slots = AnswerSlots(1)
        slots.take()
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
            slots.take()
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
        slots.take()
        slots.run(run)
        await slots.end_all(within_s=0.05)
        assert slots.num_taken == 1
        run.may_begin.set()

    asyncio.run(scene())

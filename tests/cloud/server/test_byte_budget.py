"""Bytes of frames: how much a stream, a tenant and the server hold, and who gets room when."""

from __future__ import annotations

import asyncio
import threading

import pytest

from cloud.errors import CapacityError
from cloud.server.byte_budget import SMALL_FRAME_BYTES, ByteBudget, ByteLimits

BIG = 2 * SMALL_FRAME_BYTES


def budget(total: int = 8 * BIG, tenant: int = 4 * BIG, stream: int = 2 * BIG) -> ByteBudget:
    limits = ByteLimits(total=total, per_tenant=tenant, per_stream=stream)
    return ByteBudget(limits, has_tenants=True)


@pytest.mark.parametrize(
    ("tenants", "expected"),
    [("aaaa", 4), ("abcdefghij", 8)],
    ids=["a tenant's", "the server's"],
)
def test_no_more_is_held_than_each_account_allows(tenants: str, expected: int) -> None:
    async def scenario() -> None:
        it, taken = budget(), 0
        for tenant in tenants:
            stream = it.stream(tenant)
            for _ in range(3):
                try:
                    await stream.take(BIG, max_wait_s=0.0)
                    taken += 1
                except CapacityError:
                    break
        assert taken == expected
        assert it.used_bytes == expected * BIG

    asyncio.run(scenario())


def test_a_frame_alone_always_fits_and_a_small_one_of_an_idle_stream_too() -> None:
    async def scenario() -> None:
        it = budget()
        release = await it.stream("a").take(100 * BIG, max_wait_s=0.0)
        with pytest.raises(CapacityError, match="no room for a frame"):
            await it.stream("b").take(BIG, max_wait_s=0.0)
        step = await it.stream("b").take(SMALL_FRAME_BYTES, max_wait_s=0.0)
        for done in (release, step):
            done()
        assert it.used_bytes == 0

    asyncio.run(scenario())


def test_room_that_another_thread_gives_back_goes_to_who_waits_longest() -> None:
    async def scenario() -> None:
        it = budget(total=BIG, tenant=BIG, stream=BIG)
        release = await it.stream("a").take(BIG, max_wait_s=1.0)
        order: list[str] = []

        async def wait(name: str) -> None:
            done = await it.stream(name).take(BIG, max_wait_s=20.0)
            order.append(name)
            done()

        waiting = [asyncio.create_task(wait(name)) for name in "bcd"]
        await asyncio.sleep(0)
        assert it.num_waiting == 3
        thread = threading.Thread(target=release)
        thread.start()
        await asyncio.gather(*waiting)
        thread.join()
        assert order == ["b", "c", "d"]
        assert (it.used_bytes, it.num_waiting) == (0, 0)

    asyncio.run(scenario())


def test_a_stream_that_ends_while_it_waits_holds_nothing() -> None:
    async def scenario() -> None:
        it = budget(total=BIG, tenant=BIG, stream=BIG)
        release = await it.stream("a").take(BIG, max_wait_s=1.0)
        waiting = asyncio.create_task(it.stream("b").take(BIG, max_wait_s=20.0))
        await asyncio.sleep(0)
        release()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.sleep(0)
        assert (it.used_bytes, it.num_waiting) == (0, 0)

    asyncio.run(scenario())

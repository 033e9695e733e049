"""Answers reach their queues in order, and wake the event loop once for all that lie there."""

from __future__ import annotations

import asyncio
import threading

from cloud.server.mailbox import Mailbox


def test_what_is_posted_from_a_thread_arrives_in_order() -> None:
    async def scenario() -> None:
        mailbox: Mailbox[int] = Mailbox()
        queues: list[asyncio.Queue[int]] = [asyncio.Queue() for _ in range(3)]

        def post_all() -> None:
            for i in range(3000):
                mailbox.post(queues[i % 3], i)

        thread = threading.Thread(target=post_all)
        thread.start()
        for i in range(3000):
            assert await asyncio.wait_for(queues[i % 3].get(), 20) == i
        thread.join()

    asyncio.run(scenario())


def test_a_batch_wakes_the_loop_once() -> None:
    async def scenario() -> None:
        event_loop = asyncio.get_running_loop()
        mailbox: Mailbox[int] = Mailbox()
        queue: asyncio.Queue[int] = asyncio.Queue()
        wakes = 0
        wake = event_loop.call_soon_threadsafe

        def counted(*given: object) -> object:
            nonlocal wakes
            wakes += 1
            return wake(*given)  # type: ignore[arg-type]

        event_loop.call_soon_threadsafe = counted  # type: ignore[assignment, method-assign]
        for batch in range(3):
            for i in range(32):
                mailbox.post(queue, i)
            assert [await queue.get() for _ in range(32)] == list(range(32))
            assert wakes == batch + 1

    asyncio.run(scenario())


def test_posting_to_a_loop_that_is_gone_is_harmless() -> None:
    async def made() -> tuple[Mailbox[int], asyncio.Queue[int]]:
        return Mailbox(), asyncio.Queue()

    mailbox, queue = asyncio.run(made())
    mailbox.post(queue, 1)
    assert queue.empty()

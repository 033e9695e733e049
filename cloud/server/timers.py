"""A time limit for one wait, cheap enough for every message.

`asyncio.wait_for` makes a task for each call in Python 3.10 and 3.11; this makes a timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(timeout_s: float, waited_for: Awaitable[T], error: BaseException) -> T:
    """What `waited_for` gives, or `error` once `timeout_s` seconds have passed."""
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a time limit needs a task")
    is_over = False

    def end() -> None:
        nonlocal is_over
        is_over = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(timeout_s, end)
    try:
        return await waited_for
    except asyncio.CancelledError:
        if not is_over:
            raise
        if hasattr(task, "uncancel"):  # from Python 3.11 on
            task.uncancel()
        raise error from None
    finally:
        timer.cancel()
        # An error refers to this frame by its traceback. A call whose frames form a cycle with
        # its error would live, and hold its stream open, until the next full collection.
        del error

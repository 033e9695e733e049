"""Waiting for what other threads and processes do."""

from __future__ import annotations

import time
from collections.abc import Callable


def comes_true(condition: Callable[[], bool], *, within_s: float = 15.0) -> bool:
    """Whether `condition` holds before the time is over; it is asked every 10 ms."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.01)
    return True

"""How long a generation waits for what, and the clock it waits by."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long to wait for what, in seconds, and how to knock again.

    `attempt_s` is the most that one knock at one address waits. `step_s` is for a server that is
    reached and does not answer; a path that is gone without a word (a half-open connection) is
    noticed earlier, by the transport's keepalive.
    A broken stream is reopened after `first_backoff_s`, then twice that and so on up to
    `max_backoff_s`, each shortened by a random part of up to a half so that many devices do
    not come back at once.
    """

    connect_s: float = 10.0
    attempt_s: float = 10.0
    step_s: float = 60.0
    recover_s: float = 60.0
    first_backoff_s: float = 0.1
    max_backoff_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Time as the loop sees it; tests pass their own."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

"""Which address to try next after a failed connect attempt, and after what wait: pure values.

The edge and the simulator both ask `ConnectAttempts` and `Recovery`; neither decides anything
itself.

- **Busy.** The server said how long to wait. Wait that long, `first_backoff_s` at least, then try
  the next address.
- **Unreachable.** Wait `first_backoff_s`, twice that after the next failure, and so on up to
  `max_backoff_s`. A random part shortens each wait by up to a half, so that many devices do not
  come back at once. Then try the next address. (Exponential backoff with "equal jitter": Brooker
  2015, "Exponential Backoff And Jitter", AWS Architecture Blog.)
- **Refused.** Another server may be the right one, so try the next address at once. When every
  address has refused, give up.
- **Lost early.** A server that loses a session before it brought anything new is like one that is
  unreachable: the backoff goes on over all attempts until something new comes.

Only progress counts: a new token, or an answer to a frame that no earlier stream had answered. It
alone resets the backoff, the count of attempts, and the time limit for recovering.

A wait that would end after the time limit is not worth it: the client gives up at once. So it does
after `MAX_ATTEMPTS` attempts without progress.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

# 2 ** 30 first waits exceed every limit; a larger exponent might overflow a float.
MAX_DOUBLINGS: Final = 30
# Attempts between two pieces of progress. The waits keep a default client far below it.
MAX_ATTEMPTS: Final = 1000

Failure = Literal["busy", "unreachable", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long a client waits for what, in seconds.

    `connect_s`: for a session to open, with all attempts. `attempt_s`: for one address in one
    attempt. `step_s`: for an answer of a server that is reached; the transport's keepalive notices
    a half-open connection earlier. `recover_s`: for a new session after a loss. `first_backoff_s`
    and `max_backoff_s`: between attempts, as the module's docstring says. `close_s`: for the server
    to end the stream after the client has closed it; the edge's transport takes the default.
    """

    connect_s: float = 10.0
    attempt_s: float = 10.0
    step_s: float = 60.0
    recover_s: float = 60.0
    first_backoff_s: float = 0.1
    max_backoff_s: float = 5.0
    close_s: float = 2.0

    def attempt_limit_s(self, left_s: float, num_addresses: int) -> float:
        """How long one attempt may take when `left_s` seconds are left for `num_addresses`.

        An address that never answers must not use up the time of the others.
        """
        return min(left_s / num_addresses, self.attempt_s)

    def backoff_s(self, num_failures: int, draw: float) -> float:
        """The wait after so many failures in a row (at least 1). draw: random, in [0, 1)."""
        full_s = self.first_backoff_s * 2.0 ** min(num_failures - 1, MAX_DOUBLINGS)
        return min(full_s, self.max_backoff_s) * (0.5 + 0.5 * draw)


class Retry(NamedTuple):
    """Try again after `wait_s` seconds, with `attempts` as the new state."""

    wait_s: float
    attempts: ConnectAttempts


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Since when a client has had nothing new. `lost_at_s`: the first loss since then, if any."""

    lost_at_s: float | None = None

    @property
    def is_recovering(self) -> bool:
        """Whether a stream was lost and nothing new has come since."""
        return self.lost_at_s is not None

    def after_loss(self, now_s: float) -> Recovery:
        """A stream was lost. Only the first loss since the last progress starts the time."""
        return replace(self, lost_at_s=now_s) if self.lost_at_s is None else self

    def left_s(self, limit_s: float, now_s: float) -> float:
        """What is left of `limit_s` seconds; all of it before a loss, below 0 when it is over."""
        return limit_s if self.lost_at_s is None else self.lost_at_s + limit_s - now_s


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectAttempts:
    """What a client has tried since the last progress. Each method returns the next value.

    `next_address` counts up and is taken modulo the number of addresses. `num_failures`: attempts
    in a row that found the address unreachable. `refused`: the addresses that have refused.
    `num_attempts`: all attempts that failed.
    """

    next_address: int = 0
    num_failures: int = 0
    refused: frozenset[int] = frozenset()
    num_attempts: int = 0

    def begin(self) -> ConnectAttempts:
        """A connect call after progress: it starts at the address that was used last."""
        return ConnectAttempts(next_address=self.next_address)

    def after_early_loss(self, policy: RetryPolicy, draw: Callable[[], float]) -> Retry | None:
        """The last session was lost before it brought anything: back off and change the address.

        The failures so far still count. draw: the next random number in [0, 1). None: give up.
        """
        failed = replace(self, num_failures=self.num_failures + 1, refused=frozenset())
        return failed._retry(policy.backoff_s(failed.num_failures, draw()))

    def after(
        self,
        failure: Failure,
        policy: RetryPolicy,
        *,
        num_addresses: int,
        now_s: float,
        deadline_s: float,
        draw: Callable[[], float],
        retry_after_s: float = 0.0,
    ) -> Retry | None:
        """What follows a failed attempt; None: give up.

        now_s and deadline_s: on one clock. draw: the next random number in [0, 1), asked for only
        after an unreachable address. retry_after_s: what a busy server said.
        """
        if failure == "refused":
            address = self.next_address % num_addresses
            refused = replace(self, refused=self.refused | {address})
            return None if len(refused.refused) >= num_addresses else refused._retry(0.0)
        tried, wait_s = self, max(retry_after_s, policy.first_backoff_s)
        if failure == "unreachable":
            tried = replace(self, num_failures=self.num_failures + 1)
            wait_s = policy.backoff_s(tried.num_failures, draw())
        return None if now_s + wait_s >= deadline_s else tried._retry(wait_s)

    def _retry(self, wait_s: float) -> Retry | None:
        """The next address after `wait_s`, unless there were too many attempts."""
        num_attempts = self.num_attempts + 1
        if num_attempts >= MAX_ATTEMPTS:
            return None
        following = replace(self, next_address=self.next_address + 1, num_attempts=num_attempts)
        return Retry(wait_s, following)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Time as a generation sees it; tests pass their own."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

"""How many bytes of frames the server holds for one stream, for one tenant, and in all.

A frame counts from the moment it was read until the model thread has answered or forgotten it: the
bytes that came, and the rows that they are decoded to. Where a frame has no room, its stream reads
no further, so that HTTP/2 stops the client; after `max_wait_s` the stream ends. Ours.

Three rules keep honest clients going. A frame that is alone in an account always fits it, so
nothing waits for ever. A small frame whose stream has no other always fits: a decode step does not
wait behind the prompts of others. And room goes to those that wait longest. Answers are small and
no more than frames in flight: they need no account.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from cloud.errors import CapacityError

# One decode step's row and its drafts.
SMALL_FRAME_BYTES: Final = 64 << 10
DEFAULT_TOTAL_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteLimits:
    """Most bytes of frames in all, of one tenant and of one stream."""

    total: int = DEFAULT_TOTAL_BYTES
    per_tenant: int = DEFAULT_TOTAL_BYTES // 2
    per_stream: int = DEFAULT_TOTAL_BYTES // 8

    @classmethod
    def of(cls, total: int) -> ByteLimits:
        """A half of `total` for one tenant, an eighth for one stream."""
        return cls(total=total, per_tenant=total // 2, per_stream=total // 8)


class _Account:
    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def fits(self, count: int) -> bool:
        return self.used == 0 or self.used + count <= self.limit


class ByteBudget:
    """All accounts of a server. Any thread may release; all else is the event loop's."""

    def __init__(self, limits: ByteLimits | None = None, *, has_tenants: bool = False) -> None:
        """has_tenants: without tenants everybody is one, who may use all there is."""
        self._limits = limits or ByteLimits()
        self._has_tenants = has_tenants
        self._total = _Account(self._limits.total)
        self._tenants: dict[str, _Account] = {}  # no more than the token file has lines
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.Future[None], tuple[StreamBytes, int]] = {}
        # Of all messages so far, when they came and when they went: what went through the
        # allocator. Written by several threads without a lock, because nothing depends on it.
        self.passed_bytes = 0

    @property
    def used_bytes(self) -> int:
        """Bytes of frames that are held now."""
        return self._total.used

    @property
    def num_waiting(self) -> int:
        """Streams that wait for room."""
        return len(self._waiting)

    def stream(self, tenant: str) -> StreamBytes:
        """The account of a new stream."""
        limits = self._limits
        most = limits.per_tenant if self._has_tenants else limits.total
        of_tenant = self._tenants.setdefault(tenant, _Account(most))
        return StreamBytes(self, (_Account(limits.per_stream), of_tenant, self._total))

    def _take(self, stream: StreamBytes, count: int) -> bool:
        own = stream.accounts[0]
        is_small = count <= SMALL_FRAME_BYTES and own.used == 0
        with self._lock:
            if not (is_small or all(account.fits(count) for account in stream.accounts)):
                return False
            for account in stream.accounts:
                account.used += count
            return True

    def _release(self, stream: StreamBytes, count: int, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            for account in stream.accounts:
                account.used -= count
            self.passed_bytes += count
        if self._waiting and not loop.is_closed():
            loop.call_soon_threadsafe(self._serve)

    def _serve(self) -> None:
        """Give room to those that wait, the oldest first, until the server has none left."""
        for future, (stream, count) in list(self._waiting.items()):
            if future.done():
                continue
            if self._take(stream, count):
                future.set_result(None)
            elif not self._total.fits(count):
                return


class StreamBytes:
    """One stream's account, in its tenant's and the server's."""

    def __init__(self, budget: ByteBudget, accounts: tuple[_Account, ...]) -> None:
        self.accounts = accounts
        self._budget = budget

    def passed(self, count: int) -> None:
        """A message of `count` bytes was read."""
        self._budget.passed_bytes += count

    async def take(self, count: int, *, max_wait_s: float) -> Callable[[], None]:
        """Room for a frame of `count` bytes; call what is returned, once, to release it.

        Raises CapacityError where there is none within `max_wait_s`.
        """
        budget, loop = self._budget, asyncio.get_running_loop()
        release = partial(budget._release, self, count, loop)
        if not budget._waiting and budget._take(self, count):
            return release
        future: asyncio.Future[None] = loop.create_future()
        budget._waiting[future] = (self, count)
        budget._serve()
        try:
            await asyncio.wait({future}, timeout=max_wait_s)
        except asyncio.CancelledError:
            if future.done():
                release()
            raise
        finally:
            del budget._waiting[future]
        if not future.done():
            raise CapacityError(
                f"no room for a frame of {count} bytes within {max_wait_s:g} s: this server holds "
                f"{budget.used_bytes} bytes of frames that it has not run"
            )
        return release

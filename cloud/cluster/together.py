"""What one replica asks of the others and tells them, by way of the book.

A tenant's rows are counted in the book, a tenth of a second's worth at a time, so that few frames
wait for it. Whoever has no limit never asks. While the book does not answer, each replica holds
every limit alone, and the log says so once. Lives on the server's event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from cloud.cluster.book import ReplicaReport, SiblingNews, key_name
from cloud.errors import CapacityError
from cloud.sessions.lifecycle import SessionKey
from cloud.sessions.siblings import Alone, Elsewhere
from cloud.sessions.tenants import Tenant
from optimizer.policy.replicas import ReplicaLoad, least_loaded, retry_after_s

logger = logging.getLogger(__name__)

EVERY_S: Final = 0.25
# How long a decision waits for the book, and how long it is left alone after it did not answer.
ASK_TIMEOUT_S: Final = 0.5
AWAY_S: Final = 2.0
# Rows are fetched for so long ahead. A replica may hold as many that it never uses.
AHEAD_S: Final = 0.1


class AskBook(Protocol):
    """Calls a method of `ReplicaBook`, wherever it is. Raises whatever keeps it from an answer."""

    def __call__(self, method: str, *arguments: Any) -> Awaitable[Any]: ...


@dataclass(slots=True)
class _Fetched:
    """Rows of one tenant that the book has counted: how many are left, and from when they count."""

    rows: float = 0.0
    ready_s: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Together:
    """The siblings of one replica (`cloud.sessions.siblings`). name: of the replica."""

    def __init__(
        self, name: str, ask: AskBook, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._ask_book = ask
        self._clock = clock
        self._alone = Alone()
        self._fetched: dict[str, _Fetched] = {}
        self._others: Mapping[str, ReplicaLoad] = {}
        self._heard_s: float | None = None
        self._away_until_s: float | None = None  # the book did not answer, and is not asked before
        self._notices: set[asyncio.Task[Any]] = set()

    async def wait_s(self, tenant: Tenant, num_rows: int, *, at_s: float) -> float:
        """See Siblings. at_s: on the server's clock, for the time without the book."""
        if tenant.tokens_per_s is None:
            return 0.0
        fetched = self._fetched.setdefault(tenant.name, _Fetched())
        async with fetched.lock:
            if num_rows > fetched.rows:
                lump = max(num_rows - fetched.rows, tenant.tokens_per_s * AHEAD_S)
                rows = int(-(-lump // 1))
                wait_s = await self._ask("take_rows", tenant.name, tenant.tokens_per_s, rows)
                if wait_s is None:
                    return await self._alone.wait_s(tenant, num_rows, at_s=at_s)
                fetched.rows += rows
                fetched.ready_s = self._clock() + wait_s
            fetched.rows -= num_rows
            return max(fetched.ready_s - self._clock(), 0.0)

    async def check_place(self, tenant: Tenant, key: SessionKey, num_here: int) -> None:
        """See Siblings. While the book is away, the sessions here alone count."""
        if tenant.sessions is None:
            return
        session = key_name(key)
        may = await self._ask(
            "may_begin", self._name, tenant.name, tenant.sessions, num_here, session
        )
        if may is False:
            raise CapacityError(f"{tenant.name} has all its {tenant.sessions} sessions open")

    def took_over(self, key: SessionKey, replica: str) -> None:
        """See Siblings. Nobody waits for it."""
        task = asyncio.ensure_future(self._ask("took_over", key_name(key), replica))
        self._notices.add(task)
        task.add_done_callback(self._notices.discard)

    def with_room(self) -> Elsewhere | None:
        """See Siblings, as of the last report."""
        if self._heard_s is None or self._clock() - self._heard_s > AWAY_S:
            return None
        name = least_loaded(self._others)
        return None if name is None else Elsewhere(name, retry_after_s(self._others[name]))

    async def run(
        self, report: Callable[[], ReplicaReport], close: Callable[[tuple[str, ...]], None]
    ) -> None:
        """Report until cancelled. close: ends resumable sessions of these names."""
        while True:
            news: SiblingNews | None = await self._ask("report", report())
            if news is not None:
                self._others, self._heard_s = news.others, self._clock()
                close(news.close)
            await asyncio.sleep(EVERY_S)

    async def _ask(self, method: str, *arguments: Any) -> Any:
        """The book's answer; None: it is away."""
        if self._away_until_s is not None and self._clock() < self._away_until_s:
            return None
        try:
            answer = await asyncio.wait_for(self._ask_book(method, *arguments), ASK_TIMEOUT_S)
        except Exception as error:
            if self._away_until_s is None:
                logger.warning(
                    "the book of the replicas is away (%s): tenants' limits hold for each replica",
                    type(error).__name__,
                )
            self._away_until_s = self._clock() + AWAY_S
            return None
        if self._away_until_s is not None:
            self._away_until_s = None
            logger.warning("the book is back: tenants' limits hold for all replicas together")
        return answer

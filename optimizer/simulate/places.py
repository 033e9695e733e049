"""Places on one simulated server: sessions, their KV blocks, and the admission queue.

`cloud.sessions.admission` in simulated time, with the same rule.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from simpy import Environment
from simpy.events import Timeout

from optimizer.policy.admission import AdmissionRule, ServerLoad, Verdict
from optimizer.simulate.record import ServerSums
from optimizer.simulate.sessions import SessionHost, SessionOwner, SimulatedSession

# Told the verdict on an Open, and the session if it was admitted.
Opened: TypeAlias = Callable[[Verdict, SimulatedSession | None], None]


class PendingOpen(NamedTuple):
    """An Open in the admission queue."""

    owner: SessionOwner
    blocks: int
    opened: Opened


class ServerPlaces:
    """Grants sessions in the order in which they asked.

    total_blocks: KV blocks of the server. horizon_s: `sums` count up to here. max_wait_s: how long
    an Open may wait in the queue.
    """

    def __init__(
        self,
        env: Environment,
        host: SessionHost,
        rule: AdmissionRule,
        sums: ServerSums,
        *,
        total_blocks: int,
        horizon_s: float,
        max_wait_s: float,
    ) -> None:
        self._env = env
        self._host = host
        self._rule = rule
        self._sums = sums
        self._horizon_s = horizon_s
        self._max_wait_s = max_wait_s
        self._sessions: dict[SimulatedSession, None] = {}
        self._queue: deque[PendingOpen] = deque()
        self._free_blocks = total_blocks
        self._since_s = 0.0  # when the number of blocks in use last changed

    def open(self, owner: SessionOwner, blocks: int, opened: Opened) -> None:
        """An Open came in; `opened` is called with the verdict, now or when a place is free."""
        verdict = self._rule.decide(self.load, blocks)
        if verdict.kind == "admit":
            opened(verdict, self._admit(owner, blocks))
        elif verdict.kind == "wait":
            self._wait(PendingOpen(owner, blocks, opened))
        else:
            self._sums.refused += 1
            opened(verdict, None)

    def take_over(
        self, owner: SessionOwner, blocks: int, older: SimulatedSession
    ) -> SimulatedSession | None:
        """A session in the place of `older`, whose blocks stay until `release_older`; it waits in
        no queue. None: no room for both, and `older` is released."""
        if blocks > self._free_blocks:
            self.release(older)
            return None
        older.closed = True
        self._sessions.pop(older, None)
        session = self._admit(owner, blocks)
        session.older, session.continues = older, True
        return session

    def release_older(self, session: SimulatedSession) -> None:
        """The session has all that it takes from the older one, whose blocks are free."""
        older, session.older = session.older, None
        if older is not None:
            self.release(older)

    def release(self, session: SimulatedSession) -> None:
        """The session's place and blocks are free, and those that it took over."""
        self.release_older(session)
        session.closed = True
        self._sessions.pop(session, None)
        self.count_blocks()
        self._free_blocks += session.blocks

    def admit_waiting(self) -> None:
        """Give free places to the queue, first come first."""
        while self._queue and self._rule.fits(self.load, self._queue[0].blocks):
            owner, blocks, opened = self._queue.popleft()
            opened(Verdict("admit"), self._admit(owner, blocks))

    def empty(self) -> tuple[list[SimulatedSession], list[PendingOpen]]:
        """The server dies: every session that it had, still to be released, and the whole queue."""
        return list(self._sessions), self.empty_queue()

    def empty_queue(self) -> list[PendingOpen]:
        """The server drains: the whole queue, which is to be refused."""
        pending = list(self._queue)
        self._queue.clear()
        return pending

    def count_blocks(self) -> None:
        """Add the blocks in use since the last change to the sums."""
        now_s = min(self._env.now, self._horizon_s)
        used = self._sums.total_blocks - self._free_blocks
        self._sums.kv_block_seconds += used * max(0.0, now_s - self._since_s)
        self._since_s = now_s

    def _wait(self, waiter: PendingOpen) -> None:
        self._queue.append(waiter)
        if self._max_wait_s == math.inf:
            return

        def refuse(_: object) -> None:
            if any(other is waiter for other in self._queue):
                self._queue.remove(waiter)
                self._sums.refused += 1
                waiter.opened(self._rule.after_waiting(len(self._queue)), None)

        timeout = Timeout(self._env, self._max_wait_s)
        timeout.callbacks.append(refuse)

    @property
    def load(self) -> ServerLoad:
        """Sessions, Opens in the queue, and KV blocks."""
        return ServerLoad(
            len(self._sessions), len(self._queue), self._free_blocks, self._sums.total_blocks
        )

    def _admit(self, owner: SessionOwner, blocks: int) -> SimulatedSession:
        session = SimulatedSession(self._host, owner, blocks)
        self.count_blocks()
        self._free_blocks -= blocks
        self._sessions[session] = None
        sums = self._sums
        sums.peak_sessions = max(sums.peak_sessions, len(self._sessions))
        sums.kv_peak_blocks = max(sums.kv_peak_blocks, sums.total_blocks - self._free_blocks)
        return session

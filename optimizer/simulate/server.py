"""One server: admission, line, batches, answers; `cloud.engine.loop` in simulated time.

One model thread does everything that costs time, in this order: take what came in (decode each
frame that becomes the head of its session), let the scheduler pick, run the batch, then for
each of its sessions draw tokens, send the answer, and decode the session's next frame if one
waits.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Protocol

from simpy import Environment
from simpy.events import Timeout

from optimizer.cost.cloud import SessionRows
from optimizer.simulate.ports import (
    AdmissionRule,
    Answer,
    BatchScheduler,
    MakeWaiting,
    Reply,
    ServerLoad,
)
from optimizer.simulate.record import ServerSums
from optimizer.simulate.times import BackTimes


class Frame:
    """One message of rows on its way through a server."""

    __slots__ = (
        "arrived_s",
        "cloud_s",
        "decode_s",
        "edge_s",
        "left",
        "num_logits",
        "num_rows",
        "position",
        "sent_s",
        "session",
        "wanted",
    )

    def __init__(
        self,
        session: ServerSession,
        *,
        num_rows: int,
        num_logits: int,
        position: int,
        decode_s: float,
        sent_s: float,
        edge_s: float,
        wanted: bool,
    ) -> None:
        self.session = session
        self.num_rows = num_rows
        self.left = num_rows
        self.num_logits = num_logits
        self.position = position
        self.decode_s = decode_s
        self.sent_s = sent_s
        self.edge_s = edge_s
        self.wanted = wanted  # whether its answer has to bring tokens
        self.arrived_s = 0.0
        self.cloud_s = 0.0

    def arrive(self, _: object) -> None:
        """The last byte is in (an event's callback)."""
        self.session.server.receive(self)


class Owner(Protocol):
    """Whoever opened a session: told the answers, and the loss of the server."""

    def answered(self, frame: Frame, at_s: float) -> None: ...
    def lost(self, session: ServerSession, at_s: float) -> None: ...


class ServerSession:
    """One admitted session: its KV blocks, its frames in order."""

    __slots__ = ("blocks", "closed", "current", "frames", "owner", "server")

    def __init__(self, server: Server, owner: Owner, blocks: int) -> None:
        self.server = server
        self.owner = owner
        self.blocks = blocks
        self.frames: deque[Frame] = deque()
        self.current: Frame | None = None
        self.closed = False


Opened = Callable[[Answer, ServerSession | None], None]
_Waiter = tuple[Owner, int, Opened]
RETRY_AFTER_S = 1.0  # what the first one sent away from an empty line is told, as by the server


class Server:
    """See the module's docstring. `horizon_s`: sums count up to here. `max_wait_s`: so long an
    Open stands in line."""

    def __init__(
        self,
        env: Environment,
        *,
        scheduler: BatchScheduler,
        waiting: MakeWaiting,
        admission: AdmissionRule,
        back: BackTimes,
        total_blocks: int,
        sample_s: float,
        horizon_s: float,
        max_wait_s: float = math.inf,
    ) -> None:
        self._env = env
        self._scheduler = scheduler
        self._waiting = waiting
        self._admission = admission
        self._back = back
        self._sample_s = sample_s
        self._horizon_s = horizon_s
        self._max_wait_s = max_wait_s
        self._inbox: deque[Frame] = deque()
        self._line: dict[Frame, object] = {}  # frames at the head of their sessions, by arrival
        self._sessions: dict[ServerSession, None] = {}
        self._pending: deque[_Waiter] = deque()
        self._free_blocks = total_blocks
        self._since_s = 0.0  # when the number of blocks in use last changed
        self._running = False
        self._life = 0  # goes up with every loss, so that events of an earlier life are known
        self.alive = True
        self.since_s = 0.0  # when this life began
        self.sums = ServerSums(total_blocks=total_blocks)

    @property
    def life(self) -> int:
        """Goes up with every loss: connections of an earlier life are gone."""
        return self._life

    def open(self, owner: Owner, blocks: int, opened: Opened) -> None:
        """An Open came in; `opened` is called with the answer, now or when a place is free."""
        if not self.alive:
            opened(Reply("busy"), None)
            return
        answer = self._admission.decide(self._load(), blocks)
        if answer.kind == "admit":
            opened(answer, self._admit(owner, blocks))
        elif answer.kind == "wait":
            self._stand_in_line((owner, blocks, opened))
        else:
            self.sums.refused += 1
            opened(answer, None)

    def _stand_in_line(self, waiter: _Waiter) -> None:
        self._pending.append(waiter)
        if self._max_wait_s == math.inf:
            return

        def send_away(_: object) -> None:
            if any(other is waiter for other in self._pending):
                self._pending.remove(waiter)
                self.sums.refused += 1
                waiter[2](Reply("busy", RETRY_AFTER_S * (1 + len(self._pending))), None)

        timeout = Timeout(self._env, self._max_wait_s)
        timeout.callbacks.append(send_away)

    def leave(self, session: ServerSession) -> None:
        """The session is over; what waits for a place gets it."""
        if session.closed:
            return
        self._drop(session)
        while self._pending:
            owner, blocks, opened = self._pending[0]
            load = self._load()
            # The one at the head of the line stands before the others, not behind itself.
            answer = self._admission.decide(
                ServerLoad(load.sessions, 0, load.free_blocks, load.total_blocks), blocks
            )
            if answer.kind != "admit":
                break
            self._pending.popleft()
            opened(answer, self._admit(owner, blocks))

    def receive(self, frame: Frame) -> None:
        """A frame's last byte is in."""
        if frame.session.closed:
            return
        frame.arrived_s = self._env.now
        self._inbox.append(frame)
        if not self._running:
            self._running = True
            self._take(None)

    def lose(self) -> None:
        """The process dies: every session with it."""
        self.alive = False
        self._life += 1
        sessions = list(self._sessions)
        pending, self._pending = self._pending, deque()
        for session in sessions:
            self._drop(session)
        self._inbox.clear()
        self._line.clear()
        self._running = False
        for session in sessions:
            session.owner.lost(session, self._env.now)
        for _, _, opened in pending:
            opened(Reply("busy"), None)

    def restore(self) -> None:
        """A new process listens."""
        self.alive = True
        self.since_s = self._env.now

    def finish(self) -> None:
        """Close the sums at the end of the simulation."""
        self._count_blocks()

    def _take(self, life: int | None) -> None:
        """Apply what came in; then a batch, or sleep."""
        decode_s = 0.0
        inbox = self._inbox
        while inbox:
            frame = inbox.popleft()
            session = frame.session
            if session.closed:
                continue
            if session.current is None:
                decode_s += self._begin(frame)
            else:
                session.frames.append(frame)
        if decode_s > 0:
            self._busy(self._env.now, decode_s)
            self._later(decode_s, self._take)
            return
        shares = self._scheduler.next_batch(list(self._line.values())) if self._line else ()
        if not shares:
            self._running = False
            return
        sums = self.sums
        rows = [
            SessionRows(share.num_rows, share.key.position + share.key.num_rows - share.key.left)
            for share in shares
        ]
        num_logits = sum(
            share.key.num_logits for share in shares if share.num_rows == share.key.left
        )
        seconds = self._back.seconds(rows, num_logits)
        now_s = self._env.now
        if now_s < self._horizon_s:
            sums.batches += 1
            sums.rows += sum(row.num_rows for row in rows)
            sums.batch_sessions += len(rows)
        if len(self._line) > sums.peak_line:
            sums.peak_line = len(self._line)
        self._busy(now_s, seconds)
        timeout = Timeout(self._env, seconds)
        life = self._life
        timeout.callbacks.append(lambda _: self._ran(shares, seconds, life))

    def _ran(self, shares: object, seconds: float, life: int) -> None:
        """The batch is through: draw, answer, and go on."""
        if life != self._life:
            return
        now_s = at_s = self._env.now
        for share in shares:  # type: ignore[attr-defined]
            frame: Frame = share.key
            session = frame.session
            if session.closed:
                continue
            frame.left -= share.num_rows
            frame.cloud_s += seconds
            if frame.left:
                self._line[frame] = self._waiting(
                    key=frame, num_rows=frame.left, num_logits=frame.num_logits, begun=True
                )
                continue
            del self._line[frame]
            session.current = None
            sample_s = self._sample_s * frame.num_logits
            at_s += sample_s
            frame.cloud_s += sample_s
            session.owner.answered(frame, at_s)
            if session.frames:
                at_s += self._begin(session.frames.popleft())
        self._busy(now_s, at_s - now_s)
        self._later(at_s - now_s, self._take)

    def _begin(self, frame: Frame) -> float:
        """The frame becomes the head of its session; returns the seconds of decoding it."""
        frame.session.current = frame
        frame.cloud_s = frame.decode_s
        self._line[frame] = self._waiting(
            key=frame, num_rows=frame.left, num_logits=frame.num_logits
        )
        return frame.decode_s

    def _later(self, delay_s: float, call: Callable[[int | None], None]) -> None:
        if delay_s <= 0:
            call(None)
            return
        life = self._life
        timeout = Timeout(self._env, delay_s)
        timeout.callbacks.append(lambda _: call(None) if life == self._life else None)

    def _busy(self, since_s: float, seconds: float) -> None:
        self.sums.busy_s += max(0.0, min(seconds, self._horizon_s - since_s))

    def _load(self) -> ServerLoad:
        return ServerLoad(
            len(self._sessions), len(self._pending), self._free_blocks, self.sums.total_blocks
        )

    def _admit(self, owner: Owner, blocks: int) -> ServerSession:
        session = ServerSession(self, owner, blocks)
        self._count_blocks()
        self._free_blocks -= blocks
        self._sessions[session] = None
        sums = self.sums
        sums.peak_sessions = max(sums.peak_sessions, len(self._sessions))
        sums.kv_peak_blocks = max(sums.kv_peak_blocks, sums.total_blocks - self._free_blocks)
        return session

    def _drop(self, session: ServerSession) -> None:
        session.closed = True
        if session.current is not None:
            self._line.pop(session.current, None)
            session.current = None
        session.frames.clear()
        self._sessions.pop(session, None)
        self._count_blocks()
        self._free_blocks += session.blocks

    def _count_blocks(self) -> None:
        now_s = min(self._env.now, self._horizon_s)
        used = self.sums.total_blocks - self._free_blocks
        self.sums.kv_block_seconds += used * max(0.0, now_s - self._since_s)
        self._since_s = now_s

"""One simulated server: frames in, batches, answers out; `cloud.engine.loop` in simulated time.

One model thread does everything that costs time, in this order. It takes what came in, and decodes
each frame that becomes the first of its session. It lets the scheduler pick a batch and runs it.
Then, for each session of the batch, it draws tokens, sends the answer, and decodes the session's
next frame if there is one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from simpy import Environment
from simpy.events import Timeout

from optimizer.cost.cloud import SessionRows
from optimizer.policy.admission import AdmissionRule, Verdict
from optimizer.policy.batching import BatchShare, Scheduler, Waiting
from optimizer.policy.replicas import ReplicaLoad
from optimizer.simulate.places import Opened, ServerPlaces
from optimizer.simulate.record import ServerSums
from optimizer.simulate.sessions import FrameInFlight, SessionOwner, SimulatedSession
from optimizer.simulate.times import BackTimes, LowerRows


class SimulatedServer:
    """See the module's docstring.

    back: seconds of a batch. sample_s: of drawing one token. horizon_s: `sums` count up to here.
    max_wait_s: how long an Open may wait in the admission queue. `number`: its own. `alive`
    and `since_s`: whether a process listens, and since when. `drains`: it takes no sessions.
    """

    def __init__(
        self,
        env: Environment,
        *,
        scheduler: Scheduler,
        admission: AdmissionRule,
        back: BackTimes,
        total_blocks: int,
        sample_s: float,
        horizon_s: float,
        max_wait_s: float = math.inf,
    ) -> None:
        self.number = 0
        self._env = env
        self._scheduler = scheduler
        self._back = back
        self._sample_s = sample_s
        self._horizon_s = horizon_s
        self._inbox: deque[FrameInFlight] = deque()
        # The first frame of each session, in the order in which they became first.
        self._queue: dict[FrameInFlight, Waiting[FrameInFlight]] = {}
        self._running = False
        self._life = 0  # goes up with every loss, so that events of an earlier life are known
        self.alive = True
        self.drains = False
        self.since_s = 0.0
        self._emptied: Callable[[], None] | None = None
        self._max_sessions = admission.max_sessions
        self.sums = ServerSums(total_blocks=total_blocks)
        self._places = ServerPlaces(
            env,
            self,
            admission,
            self.sums,
            total_blocks=total_blocks,
            horizon_s=horizon_s,
            max_wait_s=max_wait_s,
        )

    @property
    def life(self) -> int:
        """Goes up with every loss; connections of an earlier life are gone."""
        return self._life

    @property
    def takes_sessions(self) -> bool:
        """Whether it listens and does not drain."""
        return self.alive and not self.drains

    @property
    def load(self) -> ReplicaLoad:
        """How full it is."""
        load = self._places.load
        used = load.total_blocks - load.free_blocks
        return ReplicaLoad(load.sessions, self._max_sessions, load.waiting, used, load.total_blocks)

    def open(
        self,
        owner: SessionOwner,
        blocks: int,
        opened: Opened,
        older: SimulatedSession | None = None,
    ) -> None:
        """An Open came in; `opened` is called with the verdict, now or when a place is free.

        older: the session that it asks to go on from, which ends in any case.
        """
        if not self.takes_sessions:
            if older is not None:
                self.leave(older)
            opened(Verdict("busy"), None)
            return
        if older is not None and not older.closed:
            self._stop(older)
            session = self._places.take_over(owner, blocks, older)
            if session is not None:
                opened(Verdict("admit"), session)
                return
            self._places.admit_waiting()
        self._places.open(owner, blocks, opened)

    def leave(self, session: SimulatedSession) -> None:
        """The session is over; the admission queue gets its place."""
        if session.closed:
            return
        self._drop(session)
        self._places.admit_waiting()
        self._check_empty()

    def receive(self, frame: FrameInFlight) -> None:
        """A frame's last byte is in."""
        if frame.session.closed:
            return
        frame.arrived_s = self._env.now
        self._inbox.append(frame)
        if not self._running:
            self._running = True
            self._take()

    def lose(self) -> None:
        """The process dies, and every session with it."""
        self.alive = False
        self._life += 1
        sessions, pending = self._places.empty()
        for session in sessions:
            self._drop(session)
        self._inbox.clear()
        self._queue.clear()
        self._running = False
        for session in sessions:
            session.owner.lost(session, self._env.now)
        for waiter in pending:
            waiter.opened(Verdict("busy"), None)

    def drain(self) -> None:
        """Take no sessions from now on, and refuse the queue; the running ones go on."""
        self.drains = True
        for waiter in self._places.empty_queue():
            waiter.opened(Verdict("busy"), None)

    def when_empty(self, call: Callable[[], None]) -> None:
        """Call once it drains and has no session, now or later."""
        self._emptied = call
        self._check_empty()

    def restore(self) -> None:
        """A new process listens."""
        self.alive, self.drains = True, False
        self.since_s = self._env.now

    def finish(self) -> None:
        """Close the sums at the end of the simulation."""
        self._places.count_blocks()

    def _take(self) -> None:
        """Take in what came; then run a batch, or sleep."""
        decode_s = 0.0
        inbox = self._inbox
        while inbox:
            frame = inbox.popleft()
            session = frame.session
            if session.closed:
                continue
            if session.current is None:
                decode_s += self._begin(frame, self._env.now + decode_s)
            else:
                session.frames.append(frame)
        if decode_s > 0:
            self._busy(self._env.now, decode_s)
            self._later(decode_s, self._take)
            return
        shares = self._scheduler.next_batch(list(self._queue.values())) if self._queue else ()
        if not shares:
            self._running = False
            return
        sums = self.sums
        rows: list[SessionRows] = []
        lower: list[LowerRows] = []
        num_rows = num_logits = 0
        for share in shares:
            frame = share.key
            position = frame.position + frame.num_rows - frame.left
            if frame.entry is None:
                rows.append(SessionRows(share.num_rows, position))
            else:
                lower.append(LowerRows(share.num_rows, position, frame.entry))
            num_rows += share.num_rows
            if share.num_rows == frame.left:
                num_logits += frame.num_logits
        seconds = self._back.seconds(rows, num_logits, lower)
        now_s = self._env.now
        if now_s < self._horizon_s:
            sums.batches += 1
            sums.rows += num_rows
            sums.batch_sessions += len(shares)
        if len(self._queue) > sums.peak_queue:
            sums.peak_queue = len(self._queue)
        self._busy(now_s, seconds)
        timeout = Timeout(self._env, seconds)
        life = self._life
        timeout.callbacks.append(lambda _: self._ran(shares, seconds, life))

    def _ran(
        self, shares: tuple[BatchShare[FrameInFlight], ...], seconds: float, life: int
    ) -> None:
        """The batch is done: draw, answer, and go on."""
        if life != self._life:
            return
        now_s = at_s = self._env.now
        for share in shares:
            frame = share.key
            session = frame.session
            if session.closed:
                continue
            frame.left -= share.num_rows
            frame.cloud_s += seconds
            if frame.left:
                self._queue[frame] = Waiting(
                    key=frame, num_rows=frame.left, num_logits=frame.num_logits, begun=True
                )
                continue
            del self._queue[frame]
            session.current = None
            sample_s = self._sample_s * frame.num_logits
            at_s += sample_s
            frame.cloud_s += sample_s
            session.owner.answered(frame, at_s)
            while session.frames and session.current is None:
                at_s += self._begin(session.frames.popleft(), at_s)
        self._busy(now_s, at_s - now_s)
        self._later(at_s - now_s, self._take)

    def _begin(self, frame: FrameInFlight, at_s: float) -> float:
        """The frame becomes the first of its session at `at_s`; returns the seconds of decoding it.

        One with keys and values is done then, and so is one that was sent ahead on a wrong guess:
        no layer runs on it.
        """
        if frame.tokens == 0:
            frame.session.owner.answered(frame, at_s)
            return 0.0
        if frame.kv_left is not None:
            session, frame.cloud_s = frame.session, frame.decode_s
            session.owner.answered(frame, at_s + frame.decode_s)
            if not frame.kv_left:
                self._places.release_older(session)
                self._places.admit_waiting()
            return frame.decode_s
        frame.session.current = frame
        frame.cloud_s = frame.decode_s
        self._queue[frame] = Waiting(key=frame, num_rows=frame.left, num_logits=frame.num_logits)
        return frame.decode_s

    def _later(self, delay_s: float, call: Callable[[], None]) -> None:
        if delay_s <= 0:
            call()
            return
        life = self._life
        timeout = Timeout(self._env, delay_s)
        timeout.callbacks.append(lambda _: call() if life == self._life else None)

    def _busy(self, since_s: float, seconds: float) -> None:
        self.sums.busy_s += max(0.0, min(seconds, self._horizon_s - since_s))

    def _stop(self, session: SimulatedSession) -> None:
        """Run none of its frames any more."""
        if session.current is not None:
            self._queue.pop(session.current, None)
            session.current = None
        session.frames.clear()

    def _check_empty(self) -> None:
        if self._emptied is not None and self.drains and not self._places.load.sessions:
            call, self._emptied = self._emptied, None
            call()

    def _drop(self, session: SimulatedSession) -> None:
        self._stop(session)
        self._places.release(session)

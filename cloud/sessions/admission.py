"""Who gets a session: the queue for a place, and the reservation of a session's KV cache."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, NamedTuple

from cloud.errors import CapacityError, CloudError, DrainingError
from cloud.kv.pool import BLOCK_TOKENS, KvLease, KvPool, num_blocks
from cloud.kv.prefix_cache import PrefixCache
from cloud.sessions.lifecycle import (
    Lifecycle,
    SessionEvent,
    SessionKey,
    SessionLife,
    SessionState,
)
from cloud.sessions.resumable_sessions import ResumableSessions
from cloud.sessions.served_model import ServedModel
from cloud.sessions.session import Keep, ServerSession
from cloud.sessions.tenants import ANONYMOUS, Tenant
from optimizer.policy.admission import AdmissionRule, ServerLoad
from protos.messages import Description, Open
from protos.prefix import begin_chain

_DRAINING: Final = "this server is shutting down"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """How many sessions one server grants.

    max_sessions: at once. max_waiting: in the queue for a place. max_wait_s: how long each of
    them may wait.
    """

    max_sessions: int
    max_waiting: int = 16
    max_wait_s: float = 2.0


class Granted(NamedTuple):
    """An admitted session. Apply CLOSE to `life` once it ends, and FREE once its blocks are."""

    life: SessionLife
    session: ServerSession


@dataclass(slots=True, eq=False)
class _Waiter:
    """A session in the queue; `granted` is its place once it has one."""

    request: Open
    num_blocks: int
    granted: asyncio.Future[Granted]


class Admission:
    """Grants sessions while there is room, in the order they came. Lives on the event loop.

    Where there is no room, it closes one resumable session and waits for its blocks. Whoever
    frees blocks calls `serve_queue` afterwards.
    """

    def __init__(
        self,
        served: ServedModel,
        pool: KvPool,
        *,
        prefixes: PrefixCache,
        lifecycle: Lifecycle,
        resumable: ResumableSessions,
        limits: SessionLimits,
    ) -> None:
        self._served = served
        self._pool = pool
        self._prefixes = prefixes
        self._lifecycle = lifecycle
        self._resumable = resumable
        self._limits = limits
        self._rule = AdmissionRule(max_sessions=limits.max_sessions, max_waiting=limits.max_waiting)
        self._waiters: dict[SessionLife, _Waiter] = {}
        self._draining = False

    @property
    def num_sessions(self) -> int:
        """Sessions that hold KV blocks."""
        return self._lifecycle.num_with_blocks

    @property
    def num_waiting(self) -> int:
        """Sessions in the queue for a place."""
        return self._lifecycle.num_waiting

    @property
    def draining(self) -> bool:
        """Whether the server takes no new sessions, because it is shutting down."""
        return self._draining

    @property
    def max_frame_tokens(self) -> int:
        """Most rows of one frame of an admitted session."""
        return self._served.max_frame_tokens

    async def admit(
        self, request: Open, tenant: Tenant = ANONYMOUS, *, timeout_s: float | None = None
    ) -> Granted:
        """A session with its KV reserved, perhaps after a wait in the queue.

        It waits for `timeout_s` and `SessionLimits.max_wait_s` at most. Raises MismatchError,
        BadOpenError, CapacityError or DrainingError.
        """
        if self._draining:
            raise DrainingError(_DRAINING)
        self._served.check(request)
        self._check_limit_of(tenant)
        blocks = num_blocks(request.max_tokens) * self._served.num_layers_from(request.split)
        verdict = self._rule.decide(self._load(), blocks)
        if verdict.kind == "never":  # raises: the pool says how much it lacks
            self._pool.lease(split=request.split, max_tokens=request.max_tokens).close()
        if verdict.kind == "busy":
            raise CapacityError(self._why_full(), retry_after_s=verdict.retry_after_s)
        life = self._lifecycle.begin(SessionKey(tenant.name, request.session_id))
        if verdict.kind != "admit":
            return await self._wait(life, request, blocks, timeout_s)
        try:
            return self._grant(life, request)
        except CloudError:  # room, but in holes of the wrong shape
            self._lifecycle.apply(life, SessionEvent.REFUSE)
            raise

    def serve_queue(self) -> None:
        """Give places to the first sessions in the queue, as far as there is room."""
        while not self._draining:
            life = self._lifecycle.oldest(SessionState.WAITING)
            if life is None:
                return
            waiter = self._waiters[life]
            if not self._rule.fits(self._load(), waiter.num_blocks):
                self._resumable.close_oldest()  # one only: once it is free, this runs again
                return
            try:
                granted = self._grant(life, waiter.request)
            except CapacityError:  # room, but in holes of the wrong shape
                return
            waiter.granted.set_result(granted)

    def drain(self) -> None:
        """Take no new sessions from now on, and refuse those in the queue."""
        self._draining = True
        while (life := self._lifecycle.oldest(SessionState.WAITING)) is not None:
            self._lifecycle.apply(life, SessionEvent.REFUSE)
            self._waiters[life].granted.set_exception(DrainingError(_DRAINING))

    def describe(self) -> Description:
        """What this server serves, and how full it is."""
        return self._served.describe(
            active_sessions=self.num_sessions,
            kv_bytes_in_use=self._pool.used_bytes,
            kv_bytes_limit=self._pool.limit_bytes,
        )

    async def _wait(
        self, life: SessionLife, request: Open, blocks: int, timeout_s: float | None
    ) -> Granted:
        granted: asyncio.Future[Granted] = asyncio.get_running_loop().create_future()
        self._waiters[life] = _Waiter(request, blocks, granted)
        self._resumable.close_oldest()
        wait_s = min(self._limits.max_wait_s, timeout_s or self._limits.max_wait_s)
        try:
            await asyncio.wait({granted}, timeout=wait_s)
            if granted.done():
                return granted.result()
            self._give_up(life)
        except asyncio.CancelledError:
            self._give_up(life)
            raise
        finally:
            del self._waiters[life]
        retry_after_s = self._rule.retry_after_s * (1 + self.num_waiting)
        raise CapacityError(self._why_full(), retry_after_s=retry_after_s)

    def _give_up(self, life: SessionLife) -> None:
        """Leave the queue, or give back the place that came in this very moment."""
        if life.state is SessionState.WAITING:
            self._lifecycle.apply(life, SessionEvent.REFUSE)
        elif life.state is SessionState.RUNNING:
            self._waiters[life].granted.result().session.close()
            self._lifecycle.apply(life, SessionEvent.CLOSE)
            self._lifecycle.apply(life, SessionEvent.FREE)
            self.serve_queue()

    def _grant(self, life: SessionLife, request: Open) -> Granted:
        """Reserve the session's blocks. Raises CapacityError where they do not fit."""
        tenant = life.key.tenant
        with self._pool.lock:  # what is found stays until it is leased
            beginning = self._prefixes.find(tenant, request.prefix_hashes)
            lease = self._pool.lease(
                split=request.split,
                max_tokens=request.max_tokens,
                shared=None if beginning is None else beginning.blocks,
                shareable_tokens=min(request.shareable_tokens, request.max_tokens),
            )
        self._lifecycle.apply(life, SessionEvent.ADMIT)
        session = ServerSession(
            request.session_id,
            lease=lease,
            ladder=self._served.ladder(request),
            sampling=request.sampling,
            vocab_size=self._served.vocab_size,
            max_frame_tokens=self._served.max_frame_tokens,
            beginning=beginning,
            keep=self._keep(tenant, lease, request.shareable_tokens),
        )
        session.begin_chain(begin_chain(request))
        return Granted(life, session)

    def _keep(self, tenant: str, lease: KvLease, shareable_tokens: int) -> Keep | None:
        """How a session tells the prefix cache of its beginnings; None: it may share none."""
        if not shareable_tokens:
            return None

        def keep(tokens: tuple[int, ...], num_frames: int, chain: bytes) -> None:
            if len(tokens) <= shareable_tokens and len(tokens) % BLOCK_TOKENS == 0:
                self._prefixes.keep(
                    tenant, lease, tokens=tokens, num_frames=num_frames, chain=chain
                )

        return keep

    def _check_limit_of(self, tenant: Tenant) -> None:
        """Raise CapacityError where the tenant has all its sessions, and none is resumable."""
        if tenant.sessions is None:
            return
        while self._lifecycle.num_of_tenant(tenant.name) >= tenant.sessions:
            if not self._resumable.close_oldest(tenant.name):
                raise CapacityError(f"{tenant.name} has all its {tenant.sessions} sessions open")

    def _load(self) -> ServerLoad:
        pool = self._pool
        return ServerLoad(
            sessions=self.num_sessions,
            waiting=self.num_waiting,
            free_blocks=pool.num_blocks - pool.used_blocks,
            total_blocks=pool.num_blocks,
        )

    def _why_full(self) -> str:
        load = self._load()
        if load.sessions >= self._limits.max_sessions:
            return f"all {self._limits.max_sessions} sessions are taken"
        return f"KV cache is full: {load.free_blocks} of {load.total_blocks} blocks are free"

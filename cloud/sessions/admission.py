"""Who gets a session: the places of a server, the queue for them, and each model's KV memory."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cloud.errors import CapacityError, CloudError, DrainingError
from cloud.sessions.grammars import Constrain
from cloud.sessions.lifecycle import (
    Lifecycle,
    SessionEvent,
    SessionKey,
    SessionLife,
    SessionState,
)
from cloud.sessions.model_sessions import ModelSessions
from cloud.sessions.moved_kv import MovedKv
from cloud.sessions.resumable_sessions import ResumableSessions
from cloud.sessions.served_models import ServedModels
from cloud.sessions.session import ServerSession
from cloud.sessions.session_limits import SessionLimits
from cloud.sessions.siblings import Alone, Siblings
from cloud.sessions.tenant_places import TenantPlaces
from cloud.sessions.tenants import ANONYMOUS, Tenant
from optimizer.policy.admission import AdmissionRule, ServerLoad
from protos.messages import Open

_DRAINING: Final = "this server is shutting down"


class Granted(NamedTuple):
    """An admitted session. Apply CLOSE to `life` once it ends, and FREE once its blocks are."""

    life: SessionLife
    session: ServerSession
    model: ModelSessions


@dataclass(slots=True, eq=False)
class _Waiter:
    """A session in the queue; `granted` is its place once it has one."""

    model: ModelSessions
    request: Open
    tenant: Tenant
    constrain: Constrain | None
    num_blocks: int
    granted: asyncio.Future[Granted] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Admission:
    """Grants sessions while there is room, in the order they came. Lives on the event loop.

    Places are the whole server's, KV memory is each model's. So who waits for a place holds up all,
    and who waits for KV memory holds up the sessions of its model alone.

    Where there is no room, it closes one resumable session and waits for its blocks. Whoever
    frees blocks calls `serve_queue` afterwards.
    """

    def __init__(
        self,
        models: ServedModels,
        *,
        lifecycle: Lifecycle,
        resumable: ResumableSessions,
        limits: SessionLimits,
        siblings: Siblings | None = None,
    ) -> None:
        """siblings: the other servers behind this one's address; None: it stands alone."""
        self.models = models
        self._lifecycle = lifecycle
        self._resumable = resumable
        self._limits = limits
        self.tenant_places = TenantPlaces(lifecycle, resumable, siblings or Alone())
        self._rule = AdmissionRule(max_sessions=limits.max_sessions, max_waiting=limits.max_waiting)
        self._waiters: dict[SessionLife, _Waiter] = {}
        self._refusal: CloudError | None = None  # why no session begins or goes on here any more

    @property
    def num_sessions(self) -> int:
        """Sessions that hold KV blocks."""
        return self._lifecycle.num_with_blocks

    @property
    def num_waiting(self) -> int:
        """Sessions in the queue for a place."""
        return self._lifecycle.num_waiting

    @property
    def num_resumable(self) -> int:
        """Sessions whose stream broke and that may be resumed."""
        return self._lifecycle.num_resumable

    @property
    def draining(self) -> bool:
        """Whether the server takes no sessions, because it is shutting down or has failed."""
        return self._refusal is not None

    async def admit(
        self, request: Open, tenant: Tenant = ANONYMOUS, *, timeout_s: float | None = None
    ) -> Granted:
        """A session with its KV reserved, perhaps after a wait in the queue.

        It waits for `timeout_s` and `SessionLimits.max_wait_s` at most. Raises MismatchError,
        BadOpenError, CapacityError, or what `check_open` does.
        """
        constrain = await self.check(request)
        model = self.models.of(request)
        key = SessionKey(tenant.name, request.session_id)
        await self.tenant_places.check(tenant, key)
        self.check_open()  # it may have changed meanwhile
        blocks = model.num_blocks(request)
        num_ahead = sum(one.model is model for one in self._waiters.values())
        verdict = self._rule.decide(self._load_of(model), blocks, num_ahead=num_ahead)
        if verdict.kind == "never":  # raises: the pool says how much it lacks
            model.lease(request).close()
        if verdict.kind == "busy":
            raise self._full(model, verdict.retry_after_s)
        life = self._lifecycle.begin(key, model.name)
        if verdict.kind != "admit":
            waiter = _Waiter(model, request, tenant, constrain, blocks)
            return await self._wait(life, waiter, timeout_s)
        try:
            return self._grant(life, model, request, tenant, constrain)
        except CloudError:  # room, but in holes of the wrong shape
            self._lifecycle.apply(life, SessionEvent.REFUSE)
            raise

    async def check(self, request: Open) -> Constrain | None:
        """What makes the masks of its grammar; raises for a request that nobody can have here."""
        self.check_open()
        constrain = await self.models.of(request).constrain(request)
        self.check_open()  # it may have changed meanwhile
        return constrain

    def grant_moved(
        self, request: Open, tenant: Tenant, constrain: Constrain | None, moved: MovedKv
    ) -> Granted:
        """A session that begins with `moved`, in the place of the one that this comes from.

        Raises CapacityError or BadOpenError where its blocks do not fit beside the older ones.
        """
        model = self.models.of(request)
        lease = model.lease(request)
        life = self._lifecycle.begin(SessionKey(tenant.name, request.session_id), model.name)
        self._lifecycle.apply(life, SessionEvent.ADMIT)
        return Granted(life, model.moved(request, lease, constrain, moved), model)

    def serve_queue(self) -> None:
        """Give places to the first sessions in the queue, as far as there is room."""
        full: set[ModelSessions] = set()  # of whose KV memory somebody waits for more
        for life in self._lifecycle.in_state(SessionState.WAITING):
            if self._refusal is not None:
                return
            waiter = self._waiters[life]
            if waiter.model in full:
                continue
            if not self._rule.fits(self._load_of(waiter.model), waiter.num_blocks):
                self._make_room(waiter.model)  # once it is free, this runs again
                if not self._has_place:
                    return
                full.add(waiter.model)
                continue
            try:
                granted = self._grant(
                    life, waiter.model, waiter.request, waiter.tenant, waiter.constrain
                )
            except CapacityError:  # room, but in holes of the wrong shape
                full.add(waiter.model)
                continue
            waiter.granted.set_result(granted)

    def drain(self) -> None:
        """Take no sessions from now on, new or resumed, and refuse those in the queue.

        Resumable sessions are closed: nobody may continue them here, and their edges find another
        server the sooner.
        """
        self.refuse_all(DrainingError(_DRAINING))

    def refuse_all(self, error: CloudError) -> None:
        """From now on refuse every session, new, resumed or in the queue, with `error`."""
        self._refusal = error
        while (life := self._lifecycle.oldest(SessionState.WAITING)) is not None:
            self._lifecycle.apply(life, SessionEvent.REFUSE)
            self._waiters[life].granted.set_exception(type(error)(str(error)))
        self._resumable.close_all()

    def check_open(self) -> None:
        """Raise the error that `refuse_all` was told, or DrainingError after `drain`."""
        if self._refusal is not None:  # a copy: each raise would lengthen its traceback
            raise type(self._refusal)(str(self._refusal))

    async def _wait(self, life: SessionLife, waiter: _Waiter, timeout_s: float | None) -> Granted:
        granted = waiter.granted
        self._waiters[life] = waiter
        self._make_room(waiter.model)
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
        raise self._full(waiter.model, self._rule.retry_after_s * (1 + self.num_waiting))

    def _give_up(self, life: SessionLife) -> None:
        """Leave the queue, or give back the place that came in this very moment."""
        if life.state is SessionState.WAITING:
            self._lifecycle.apply(life, SessionEvent.REFUSE)
        elif life.state is SessionState.RUNNING:
            self._waiters[life].granted.result().session.close()
            self._lifecycle.apply(life, SessionEvent.CLOSE)
            self._lifecycle.apply(life, SessionEvent.FREE)
            self.serve_queue()

    @property
    def _has_place(self) -> bool:
        return self.num_sessions < self._limits.max_sessions

    def _make_room(self, model: ModelSessions) -> None:
        """Close the oldest resumable session: any where a place lacks, else one of `model`."""
        self._resumable.close_oldest(model=model.name if self._has_place else None)

    def _grant(
        self,
        life: SessionLife,
        model: ModelSessions,
        request: Open,
        tenant: Tenant,
        constrain: Constrain | None,
    ) -> Granted:
        """Reserve the session's blocks. Raises CapacityError where they do not fit."""
        session = model.reserve(request, tenant, constrain)
        self._lifecycle.apply(life, SessionEvent.ADMIT)
        return Granted(life, session, model)

    def load(self) -> ServerLoad:
        """How full this server is now: its places, and the KV memory of the fullest model."""
        loads = [self._load_of(model) for model in self.models]
        return min(loads, key=lambda load: load.free_blocks / max(load.total_blocks, 1))

    def _load_of(self, model: ModelSessions) -> ServerLoad:
        """The whole server's sessions, and the model's blocks."""
        return ServerLoad(
            sessions=self.num_sessions,
            waiting=self.num_waiting,
            free_blocks=model.free_blocks,
            total_blocks=model.pool.num_blocks,
        )

    def _full(self, model: ModelSessions, retry_after_s: float) -> CapacityError:
        load = self._load_of(model)
        why = f"KV cache is full: {load.free_blocks} of {load.total_blocks} blocks are free"
        if len(self.models) > 1:
            why += f" for {model.name}"
        if not self._has_place:
            why = f"all {self._limits.max_sessions} sessions are taken"
        return CapacityError(why, retry_after_s=retry_after_s, elsewhere=True)

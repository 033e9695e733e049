"""Who gets a session: the queue for a place, and the reservation of a session's KV cache."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cloud.drafting.eagle_drafter import EagleDrafter
from cloud.errors import CapacityError, CloudError, DrainingError
from cloud.kv.pool import KvLease, KvPool
from cloud.kv.prefix_cache import Beginning, Keep, PrefixCache
from cloud.sessions.grammars import Constrain, Grammars
from cloud.sessions.lifecycle import (
    Lifecycle,
    SessionEvent,
    SessionKey,
    SessionLife,
    SessionState,
)
from cloud.sessions.moved_kv import MovedKv
from cloud.sessions.prefix_guesses import PrefixGuesses
from cloud.sessions.resumable_sessions import ResumableSessions
from cloud.sessions.served_model import ServedModel
from cloud.sessions.session import ServerSession
from cloud.sessions.session_limits import SessionLimits
from cloud.sessions.siblings import Alone, Siblings
from cloud.sessions.tenant_places import TenantPlaces
from cloud.sessions.tenants import ANONYMOUS, Tenant
from optimizer.policy.admission import AdmissionRule, ServerLoad
from optimizer.policy.kv_blocks import num_blocks
from protos.messages import Description, Open
from protos.prefix import begin_chain

_DRAINING: Final = "this server is shutting down"


class Granted(NamedTuple):
    """An admitted session. Apply CLOSE to `life` once it ends, and FREE once its blocks are."""

    life: SessionLife
    session: ServerSession


@dataclass(slots=True, eq=False)
class _Waiter:
    """A session in the queue; `granted` is its place once it has one."""

    request: Open
    tenant: Tenant
    constrain: Constrain | None
    num_blocks: int
    granted: asyncio.Future[Granted] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


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
        grammars: Grammars,
        head: EagleDrafter | None = None,
        siblings: Siblings | None = None,
    ) -> None:
        """siblings: the other servers behind this one's address; None: it stands alone."""
        self._served = served
        self._head = head
        self._pool = pool
        self._prefixes = prefixes
        self._lifecycle = lifecycle
        self._resumable = resumable
        self._limits = limits
        self._grammars = grammars
        self._guesses = PrefixGuesses()
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

    @property
    def max_frame_tokens(self) -> int:
        """Most rows of one frame of an admitted session."""
        return self._served.max_frame_tokens

    async def admit(
        self, request: Open, tenant: Tenant = ANONYMOUS, *, timeout_s: float | None = None
    ) -> Granted:
        """A session with its KV reserved, perhaps after a wait in the queue.

        It waits for `timeout_s` and `SessionLimits.max_wait_s` at most. Raises MismatchError,
        BadOpenError, CapacityError, or what `check_open` does.
        """
        constrain = await self.check(request)
        key = SessionKey(tenant.name, request.session_id)
        await self.tenant_places.check(tenant, key)
        self.check_open()  # it may have changed meanwhile
        blocks = num_blocks(request.max_tokens) * self._served.num_layers_from(request.split)
        verdict = self._rule.decide(self.load(), blocks)
        if verdict.kind == "never":  # raises: the pool says how much it lacks
            self._pool.lease(split=request.split, max_tokens=request.max_tokens).close()
        if verdict.kind == "busy":
            raise self._full(verdict.retry_after_s)
        life = self._lifecycle.begin(key)
        if verdict.kind != "admit":
            return await self._wait(life, _Waiter(request, tenant, constrain, blocks), timeout_s)
        try:
            return self._grant(life, request, tenant, constrain)
        except CloudError:  # room, but in holes of the wrong shape
            self._lifecycle.apply(life, SessionEvent.REFUSE)
            raise

    async def check(self, request: Open) -> Constrain | None:
        """What makes the masks of its grammar; raises for a request that nobody can have here."""
        self.check_open()
        self._served.check(request)
        if request.sampling.grammar is None:
            return None
        constrain = await self._grammars.constrain(request)
        self.check_open()  # it may have changed meanwhile
        return constrain

    def grant_moved(
        self, request: Open, tenant: Tenant, constrain: Constrain | None, moved: MovedKv
    ) -> Granted:
        """A session that begins with `moved`, in the place of the one that this comes from.

        Raises CapacityError or BadOpenError where its blocks do not fit beside the older ones.
        """
        lease = self._pool.lease(split=request.split, max_tokens=request.max_tokens)
        life = self._lifecycle.begin(SessionKey(tenant.name, request.session_id))
        self._lifecycle.apply(life, SessionEvent.ADMIT)
        return Granted(life, self._session(request, lease, constrain, moved=moved))

    def serve_queue(self) -> None:
        """Give places to the first sessions in the queue, as far as there is room."""
        while self._refusal is None:
            life = self._lifecycle.oldest(SessionState.WAITING)
            if life is None:
                return
            waiter = self._waiters[life]
            if not self._rule.fits(self.load(), waiter.num_blocks):
                self._resumable.close_oldest()  # one only: once it is free, this runs again
                return
            try:
                granted = self._grant(life, waiter.request, waiter.tenant, waiter.constrain)
            except CapacityError:  # room, but in holes of the wrong shape
                return
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

    def describe(self) -> Description:
        """What this server serves, and how full it is."""
        return self._served.describe(
            active_sessions=self.num_sessions,
            kv_bytes_in_use=self._pool.used_bytes,
            kv_bytes_limit=self._pool.limit_bytes,
        )

    async def _wait(self, life: SessionLife, waiter: _Waiter, timeout_s: float | None) -> Granted:
        granted = waiter.granted
        self._waiters[life] = waiter
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
        raise self._full(self._rule.retry_after_s * (1 + self.num_waiting))

    def _give_up(self, life: SessionLife) -> None:
        """Leave the queue, or give back the place that came in this very moment."""
        if life.state is SessionState.WAITING:
            self._lifecycle.apply(life, SessionEvent.REFUSE)
        elif life.state is SessionState.RUNNING:
            self._waiters[life].granted.result().session.close()
            self._lifecycle.apply(life, SessionEvent.CLOSE)
            self._lifecycle.apply(life, SessionEvent.FREE)
            self.serve_queue()

    def _grant(
        self, life: SessionLife, request: Open, tenant: Tenant, constrain: Constrain | None
    ) -> Granted:
        """Reserve the session's blocks. Raises CapacityError where they do not fit."""
        may_share = tenant.share_prefixes or bool(request.prefix_salt)
        shareable_tokens = min(request.shareable_tokens, request.max_tokens) if may_share else 0
        with self._pool.lock:  # what is found stays until it is leased
            # What is skipped has no logits, and a prompt's log-probabilities need them.
            may_skip = may_share and request.sampling.prompt_logprobs is None
            beginning = self._find(tenant.name, request) if may_skip else None
            lease = self._pool.lease(
                split=request.split,
                max_tokens=request.max_tokens,
                shared=None if beginning is None else beginning.blocks,
                shareable_tokens=shareable_tokens,
            )
        below = self._lease_below(request, beginning)
        self._lifecycle.apply(life, SessionEvent.ADMIT)
        session = self._session(
            request,
            lease,
            constrain,
            beginning=beginning,
            keep=self._prefixes.keeper(tenant.name, lease, shareable_tokens),
            below=below,
        )
        session.begin_chain(begin_chain(request))
        return Granted(life, session)

    def _session(
        self,
        request: Open,
        lease: KvLease,
        constrain: Constrain | None,
        *,
        beginning: Beginning | None = None,
        keep: Keep | None = None,
        below: KvLease | None = None,
        moved: MovedKv | None = None,
    ) -> ServerSession:
        drafts = None
        if self._head is not None:
            split, most = request.split, request.draft_ids
            drafts = self._head.open(split=split, max_tokens=request.max_tokens, most=most)
        return ServerSession(
            request.session_id,
            lease=lease,
            ladder=self._served.ladder(request),
            sampling=request.sampling,
            vocab_size=self._served.vocab_size,
            max_frame_tokens=self._served.max_frame_tokens,
            prompt_tokens=request.prompt_tokens,
            constrain=constrain,
            beginning=beginning,
            keep=keep,
            embedding=self._served.embedding if request.token_rows else None,
            below=below,
            drafts=drafts,
            moved=moved,
        )

    def _lease_below(self, request: Open, beginning: Beginning | None) -> KvLease | None:
        """Blocks of the layers below the split, for a prompt that comes in token frames.

        None: the session takes no such frames. Either the server cannot, or it has no room now, or
        the session begins with positions of which these layers hold nothing.
        """
        if not request.token_rows or not request.split or self._served.embedding is None:
            return None
        if beginning is not None:
            return None
        try:
            return self._pool.lease(
                split=0,
                stop=request.split,
                max_tokens=min(request.token_rows, request.max_tokens),
            )
        except CloudError:  # the edge sends rows instead
            return None

    def _find(self, tenant: str, request: Open) -> Beginning | None:
        """The longest shared beginning that the request names. The pool's lock must be held."""
        names = request.prefix_hashes
        if not request.prefix_salt:  # whoever holds the token could guess these
            allowed = self._guesses.allowed(tenant)
            names = names[-allowed:] if allowed else ()
        beginning = self._prefixes.find(tenant, names)
        if not request.prefix_salt:
            found_at = -1 if beginning is None else names.index(beginning.chain)
            self._guesses.missed(tenant, len(names) - 1 - found_at)
        return beginning

    def load(self) -> ServerLoad:
        """How full this server is now."""
        pool = self._pool
        return ServerLoad(
            sessions=self.num_sessions,
            waiting=self.num_waiting,
            free_blocks=pool.num_blocks - pool.used_blocks,
            total_blocks=pool.num_blocks,
        )

    def _full(self, retry_after_s: float) -> CapacityError:
        load = self.load()
        why = f"KV cache is full: {load.free_blocks} of {load.total_blocks} blocks are free"
        if load.sessions >= self._limits.max_sessions:
            why = f"all {self._limits.max_sessions} sessions are taken"
        return CapacityError(why, retry_after_s=retry_after_s, elsewhere=True)

"""Who gets a session: every check of an Open, and the reservation of its KV cache."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloud.engine.back_engine import BackEngine
from cloud.errors import BadOpenError, CapacityError, DrainingError, MismatchError
from cloud.kv.pool import BLOCK_TOKENS, KvPool, num_blocks
from cloud.kv.prefix_cache import PrefixCache
from cloud.sessions.session import Session
from cloud.sessions.tenants import ANONYMOUS, Tenant
from codec.ladder import Ladder
from optimizer.artifacts.bundle import Bundle
from optimizer.artifacts.plan import Plan
from optimizer.policy.admission import AdmissionRule, ServerLoad
from protos.messages import Description, Open
from protos.prefix import begin_chain
from protos.wire import MAX_FRAME_TOKENS, MAX_MESSAGE_BYTES

# What a message holds beside the rows: ids of at most 5 bytes each, and headers.
_MESSAGE_OVERHEAD_BYTES: Final = 64 << 10
_DRAINING: Final = "this server is shutting down"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one server grants.

    max_sessions: at once. max_tokens: to one of them. max_waiting: sessions in line for a place;
    max_wait_s: how long each may stand there.
    """

    max_sessions: int
    max_tokens: int
    max_waiting: int = 16
    max_wait_s: float = 2.0


@dataclass(slots=True, eq=False)
class _Waiter:
    """A session in line; `granted` is its place once it has one."""

    request: Open
    tenant: Tenant
    num_blocks: int
    granted: asyncio.Future[Session]


class Admission:
    """Grants sessions while there is room, in the order they came. Lives on the event loop.

    `reclaim` is asked to free one parked session when there is no room, `reclaim_of` one of a
    tenant's own when it has all it may have; False: there is none.
    """

    def __init__(
        self,
        plan: Plan,
        engine: BackEngine,
        pool: KvPool,
        *,
        limits: Limits,
        ladders: Mapping[int, Ladder] | None = None,
    ) -> None:
        self._plan = plan
        self._engine = engine
        self._pool = pool
        self._limits = limits
        self._rule = AdmissionRule(max_sessions=limits.max_sessions, max_waiting=limits.max_waiting)
        self._ladders = dict(ladders or {})
        self._lossless = Ladder.lossless(engine.hidden_size)
        self._num_sessions = 0
        self._of_tenant: Counter[str] = Counter()
        self._line: deque[_Waiter] = deque()
        self._prefixes = PrefixCache(pool)
        self.reclaim: Callable[[], bool] = lambda: False
        self.reclaim_of: Callable[[Tenant], bool] = lambda _: False
        self.draining = False

    @property
    def num_sessions(self) -> int:
        return self._num_sessions

    @property
    def num_waiting(self) -> int:
        return len(self._line)

    @property
    def max_frame_tokens(self) -> int:
        """Most rows of one frame: the wire's bound, or what fits a message uncompressed."""
        row_bytes = 4 * self._engine.hidden_size
        fitting = (MAX_MESSAGE_BYTES - _MESSAGE_OVERHEAD_BYTES) // row_bytes
        return max(1, min(MAX_FRAME_TOKENS, fitting))

    def max_hidden_bytes(self, num_rows: int) -> int:
        """Most bytes that a frame of so many rows may take: twice what they are uncompressed."""
        return 2 * 4 * self._engine.hidden_size * num_rows + _MESSAGE_OVERHEAD_BYTES

    async def admit(
        self, request: Open, tenant: Tenant = ANONYMOUS, *, timeout_s: float | None = None
    ) -> Session:
        """A session with its KV reserved, perhaps after a wait in line (at most `timeout_s` and
        `Limits.max_wait_s`). Call `dismiss` once it is to end, and then `leave` when its blocks
        are free.

        Raises MismatchError, BadOpenError, CapacityError or DrainingError.
        """
        self._check(request)
        while tenant.sessions is not None and self._num_asked(tenant) >= tenant.sessions:
            if not self.reclaim_of(tenant):
                raise CapacityError(f"{tenant.name} has all its {tenant.sessions} sessions open")
        blocks = num_blocks(request.max_tokens) * (self._engine.num_layers - request.split)
        verdict = self._rule.decide(self._load(), blocks)
        if verdict.kind == "admit":
            return self._grant(request, tenant)
        if verdict.kind == "never":  # the pool says how much it lacks
            self._pool.lease(split=request.split, max_tokens=request.max_tokens).close()
        if verdict.kind == "busy":
            raise CapacityError(self._why_full(), retry_after_s=verdict.retry_after_s)
        granted: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(request, tenant, blocks, granted)
        self._line.append(waiter)
        self.reclaim()
        wait_s = min(self._limits.max_wait_s, timeout_s or self._limits.max_wait_s)
        try:
            return await asyncio.wait_for(asyncio.shield(granted), wait_s)
        except asyncio.TimeoutError:
            self._give_up(waiter)
            retry_after_s = self._rule.retry_after_s * (1 + len(self._line))
            raise CapacityError(self._why_full(), retry_after_s=retry_after_s) from None
        except asyncio.CancelledError:
            self._give_up(waiter)
            raise

    def dismiss(self, tenant: Tenant = ANONYMOUS) -> None:
        """A session is about to end: its tenant may have another, once there is room."""
        self._of_tenant[tenant.name] -= 1

    def leave(self) -> None:
        """A dismissed session's blocks are free: the next in line may have them."""
        self._num_sessions -= 1
        self._serve_line()

    def close_line(self) -> None:
        """Send everybody in line away: the server is draining."""
        while self._line:
            self._line.popleft().granted.set_exception(DrainingError(_DRAINING))

    def _num_asked(self, tenant: Tenant) -> int:
        """Sessions that a tenant has, and those it has in line."""
        in_line = sum(waiter.tenant.name == tenant.name for waiter in self._line)
        return self._of_tenant[tenant.name] + in_line

    def _give_up(self, waiter: _Waiter) -> None:
        """Take a waiter out of the line, or back the place it got in this very moment."""
        granted = waiter.granted
        if waiter in self._line:
            self._line.remove(waiter)
            granted.cancel()
        elif granted.done() and not granted.cancelled() and granted.exception() is None:
            granted.result().close()
            self.dismiss(waiter.tenant)
            self.leave()

    def _serve_line(self) -> None:
        while self._line and not self.draining:
            waiter = self._line[0]
            if not self._rule.fits(self._load(), waiter.num_blocks):
                self.reclaim()  # one only: once it is gone, `leave` comes here again
                return
            try:
                session = self._grant(waiter.request, waiter.tenant)
            except CapacityError:  # room, but in holes of the wrong shape
                return
            self._line.popleft()
            waiter.granted.set_result(session)

    def _grant(self, request: Open, tenant: Tenant) -> Session:
        ladder = self._ladder(request)
        with self._pool.lock:  # what is found stays until it is leased
            beginning = self._prefixes.find(tenant.name, request.prefix_hashes)
            lease = self._pool.lease(
                split=request.split,
                max_tokens=request.max_tokens,
                shared=None if beginning is None else beginning.blocks,
                shareable_tokens=min(request.shareable_tokens, request.max_tokens),
            )
        self._num_sessions += 1
        self._of_tenant[tenant.name] += 1

        def keep(tokens: tuple[int, ...], num_frames: int, chain: bytes) -> None:
            if len(tokens) <= request.shareable_tokens and len(tokens) % BLOCK_TOKENS == 0:
                self._prefixes.keep(
                    tenant.name, lease, tokens=tokens, num_frames=num_frames, chain=chain
                )

        session = Session(
            request.session_id,
            lease=lease,
            ladder=ladder,
            sampling=request.sampling,
            vocab_size=self._plan.model.geometry.vocab_size,
            max_frame_tokens=self.max_frame_tokens,
            beginning=beginning,
            keep=keep if request.shareable_tokens else None,
        )
        session.begin_chain(begin_chain(request))
        return session

    def _check(self, request: Open) -> None:
        if self.draining:
            raise DrainingError(_DRAINING)
        self._check_same_model(request)
        self._ladder(request)
        engine = self._engine
        if not engine.first_layer <= request.split < engine.num_layers:
            raise BadOpenError(
                f"split {request.split}: this server runs splits {engine.first_layer} to "
                f"{engine.num_layers - 1}"
            )
        if request.max_tokens > self._limits.max_tokens:
            raise BadOpenError(
                f"{request.max_tokens} tokens: a session may have {self._limits.max_tokens}"
            )

    def _load(self) -> ServerLoad:
        pool = self._pool
        return ServerLoad(
            sessions=self._num_sessions,
            waiting=len(self._line),
            free_blocks=pool.num_blocks - pool.used_blocks,
            total_blocks=pool.num_blocks,
        )

    def _why_full(self) -> str:
        load = self._load()
        if load.sessions >= self._limits.max_sessions:
            return f"all {self._limits.max_sessions} sessions are taken"
        return f"KV cache is full: {load.free_blocks} of {load.total_blocks} blocks are free"

    def describe(self) -> Description:
        model = self._plan.model
        return Description(
            model_id=model.id,
            model_sha256=model.sha256,
            first_layer=self._engine.first_layer,
            num_layers=self._engine.num_layers,
            hidden_size=self._engine.hidden_size,
            max_tokens=self._limits.max_tokens,
            active_sessions=self._num_sessions,
            kv_bytes_in_use=self._pool.used_bytes,
            kv_bytes_limit=self._pool.limit_bytes,
        )

    def _check_same_model(self, request: Open) -> None:
        served = self._plan.model
        if request.model_sha256 != served.sha256:
            raise MismatchError(
                f"the edge holds model {request.model_sha256}, this server serves "
                f"{served.sha256} ({served.id})"
            )
        if request.hidden_size != self._engine.hidden_size:
            raise BadOpenError(
                f"hidden size {request.hidden_size}, the model's is {self._engine.hidden_size}"
            )

    def _ladder(self, request: Open) -> Ladder:
        """The split's calibrated ladder, or the lossless one, by the digest the edge names."""
        calibrated = self._ladders.get(request.split, self._lossless)
        for ladder in (calibrated, self._lossless):
            if request.codec_tables_sha256 == ladder.tables_sha256:
                return ladder
        raise MismatchError(
            f"the edge's codec tables are {request.codec_tables_sha256}, this server's for split "
            f"{request.split} are {calibrated.tables_sha256}"
        )


def load_ladders(bundle: Bundle) -> dict[int, Ladder]:
    """The calibrated ladders of a bundle by split; `codec/split-N.tables`. Raises TablesError."""
    hidden_size = bundle.plan.model.geometry.hidden_size
    return {
        int(path.stem.removeprefix("split-")): Ladder.load(path, hidden_size=hidden_size)
        for path in map(Path, sorted(bundle.codec_dir.glob("split-*.tables")))
    }

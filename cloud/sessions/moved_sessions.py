"""Sessions that go on from an older one of the same device, at a lower split.

The edge names the older session in its Open, and how many of its tokens to begin with. Where the
older one holds them and there is room, the new session takes over their keys and values
(`cloud.sessions.moved_kv`). Else it begins like any other, and the edge sends its tokens as ids.
The older session ends in both cases.

Both count as sessions for a moment. The new one takes the older one's place, so it waits in no
queue. Lives on the event loop's thread.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Protocol

from cloud.engine.loop_commands import ActiveSession
from cloud.errors import CloudError
from cloud.kv.pool import KvPool
from cloud.sessions.admission import Admission, Granted
from cloud.sessions.held_session import HeldSession
from cloud.sessions.session import ServerSession
from cloud.sessions.tenants import Tenant
from codec.kv.frame import KvFrames
from protos.messages import Open


class SessionStopper(Protocol):
    """The part of `EngineLoop` that lets go of a session; the future is done once it has."""

    def close(self, active: ActiveSession, *, keeps_blocks: bool = False) -> Future[None]: ...


class MovedSessions:
    """See the module's docstring. hidden_size: the model's."""

    def __init__(
        self, admission: Admission, pool: KvPool, engine_loop: SessionStopper, *, hidden_size: int
    ) -> None:
        self._admission = admission
        self._pool = pool
        self._engine_loop = engine_loop
        self._hidden_size = hidden_size

    async def admit(self, request: Open, tenant: Tenant, older: HeldSession) -> Granted | None:
        """A session that begins with `request.kv_tokens` tokens of `older`, which must have no
        stream any more and runs no further. None: it cannot be had. Raises what `Admission.admit`
        does for a request that nobody can have.
        """
        session = older.active.session
        if not isinstance(session, ServerSession) or not self._may_move(request, session):
            return None
        constrain = await self._admission.check(request)
        stopped = self._engine_loop.close(older.active, keeps_blocks=True)
        await asyncio.shield(asyncio.wrap_future(stopped))
        shape = self._pool.shape
        frames = KvFrames(
            hidden_size=self._hidden_size,
            layers=range(request.split, session.lease.split),
            num_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
        )
        moved = session.hand_over(request.kv_tokens, frames)
        if moved is None:
            return None
        try:
            return self._admission.grant_moved(request, tenant, constrain, moved)
        except CloudError:
            moved.close()
            return None

    def _may_move(self, request: Open, session: ServerSession) -> bool:
        """A pool with a rank's heads alone cannot take all of them."""
        if request.max_positions or session.max_positions:  # positions are no places there
            return False
        is_same = session.lease.pool is self._pool  # else it is a session of another model
        is_down = request.split < session.lease.split
        fits = 0 < request.kv_tokens < request.max_tokens
        scored = request.sampling.prompt_logprobs is not None
        return is_same and is_down and fits and not scored and not self._pool.is_rank

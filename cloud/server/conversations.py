"""Sessions on streams: from Open to the end of the stream, whatever that end is.

A session ends where its client closes it, where an error ends it, or where its stream breaks. Then
the model thread frees it before its next batch. But where the stream broke and the client had
it, the session stays resumable for a stream that opens it again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from cloud.engine.frame_work import FrameSession
from cloud.engine.loop_commands import ActiveSession
from cloud.errors import CloudError, ReplacedError
from cloud.server.logs import event
from cloud.server.metrics import ModelMetrics
from cloud.server.places import Places
from cloud.server.stream import FrameSink, ServerStream
from cloud.sessions.admission import Admission, Granted
from cloud.sessions.held_session import HeldSession, SessionCloser
from cloud.sessions.lifecycle import Lifecycle, SessionKey
from cloud.sessions.model_sessions import ModelSessions
from cloud.sessions.moved_sessions import MovedSessions
from cloud.sessions.resumable_sessions import ResumableSessions
from cloud.sessions.siblings import Alone, Siblings
from cloud.sessions.tenants import Tenant
from protos.messages import Closed, Open, Opened

logger = logging.getLogger(__name__)

MAX_UNOPENED: Final = 128


class ModelThread(FrameSink, SessionCloser, Protocol):
    """The part of `EngineLoop` that serves sessions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelBackend:
    """What runs the sessions of one model. moves: admits those that go on from older ones; None:
    these begin anew."""

    sessions: ModelSessions
    thread: ModelThread
    metrics: ModelMetrics
    moves: MovedSessions | None = None


class StreamFigures(NamedTuple):
    """What a session on a stream is like now. kv_tokens: valid positions in its KV blocks.

    num_frames, num_tokens: what its stream brought and answered. age_s: since its stream opened.
    """

    split: int
    max_tokens: int
    kv_tokens: int
    num_frames: int
    num_tokens: int
    age_s: float


@dataclass(slots=True, eq=False)
class _OnStream:
    """A session on a stream. held: None once another stream has taken the session over."""

    key: SessionKey
    stream: ServerStream
    held: HeldSession | None
    request: Open
    trace: str | None
    model: str

    def hand_over(self) -> None:
        """Leave the session to another stream."""
        self.held = None


class Conversations:
    """All streams of a server that have said Open. Lives on the event loop's thread."""

    def __init__(
        self,
        admission: Admission,
        backends: Iterable[ModelBackend],
        *,
        lifecycle: Lifecycle,
        resumable: ResumableSessions,
        max_frames_in_flight: int,
        max_resume_s: float,
        siblings: Siblings | None = None,
        max_unopened: int = MAX_UNOPENED,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """backends: of each of the admission's models. max_resume_s: how long a session is kept at
        most once its stream broke. siblings: the other servers behind this one's address; None: it
        stands alone. max_unopened: streams that have not said what they want, at once."""
        self._admission = admission
        self._backends = {one.sessions.served.model_sha256: one for one in backends}
        self._lifecycle = lifecycle
        self._resumable = resumable
        self._max_frames_in_flight = max_frames_in_flight
        self._max_resume_s = max_resume_s
        self._siblings = siblings or Alone()
        self._clock = clock
        self._unopened = Places(
            "streams that have not been opened",
            total=max_unopened,
            per_peer=(max_unopened + 1) // 2,
        )
        self._latest: dict[SessionKey, _OnStream] = {}  # the last stream that opened each session

    def figures_now(self) -> dict[SessionKey, StreamFigures]:
        """Sizes and times of the sessions on a stream now; nothing of what they say."""
        now_s = self._clock()
        return {
            key: StreamFigures(
                split=one.request.split,
                max_tokens=one.request.max_tokens,
                kv_tokens=one.held.active.session.lease.length if one.held is not None else 0,
                num_frames=one.stream.num_frames,
                num_tokens=one.stream.num_tokens,
                age_s=now_s - one.stream.opened_s,
            )
            for key, one in self._latest.items()
        }

    def end_all(self, error: CloudError) -> None:
        """End every stream with `error`, and close every resumable session."""
        self._resumable.close_all()
        for on_stream in self._latest.values():
            on_stream.stream.end(error)

    async def hold(
        self, stream: ServerStream, tenant: Tenant, trace: str | None, *, timeout_s: float | None
    ) -> None:
        """Read Open, find or admit its session, and serve it until the stream ends.

        timeout_s: how long the client waits at most. Raises the CloudError that ends the stream.
        """
        with self._unopened.one(stream):
            request = await stream.read_open()
        key = SessionKey(tenant.name, request.session_id)
        self._check_open(key)
        held = self._take_over(key, request, stream)
        how = "opened" if held is None else "resumed"
        if held is None and request.continues:
            held = await self._move(request, tenant, stream)
            how = "opened" if held is None else "moved"
        if held is None:
            if came_from := stream.came_from:
                self._siblings.took_over(key, came_from)
            held = await self._admit(request, tenant, stream, timeout_s)
        held_frames = held.active.session.num_frames
        backend = self._backend(request)
        backend.metrics.opened(how)
        stream.begins(backend.sessions.served, backend.metrics)
        on_stream = _OnStream(key, stream, held, request, trace, backend.sessions.name)
        if key in self._latest:  # it waited in the queue at the same time
            _replace(self._latest[key])
        self._latest[key] = on_stream
        self._log(
            f"session_{how}",
            on_stream,
            split=request.split,
            max_tokens=request.max_tokens,
            held_frames=held_frames or None,
        )
        await self._converse(on_stream, held.active, held_frames)

    async def _move(
        self, request: Open, tenant: Tenant, stream: ServerStream
    ) -> HeldSession | None:
        """A session that goes on from the one that `request` names, which ends; None: none can."""
        older = self._without_stream(SessionKey(tenant.name, request.continues))
        if older is None:
            return None
        granted = None
        try:
            moves = self._moves(request)
            if moves is not None and older.is_alive:
                granted = await moves.admit(request, tenant, older)
        finally:
            freed = older.close()
        if granted is None:
            await asyncio.shield(asyncio.wrap_future(freed))
            return None
        return self._held(granted, request, stream)

    def _without_stream(self, key: SessionKey) -> HeldSession | None:
        """The session of this key, taken from its stream or from the resumable ones."""
        older = self._latest.pop(key, None)
        if older is None or older.held is None:
            return self._resumable.take(key)
        held = older.held
        _replace(older)
        older.hand_over()
        return held

    async def _admit(
        self, request: Open, tenant: Tenant, stream: ServerStream, timeout_s: float | None
    ) -> HeldSession:
        asked_s = self._clock()
        granted = await self._admission.admit(request, tenant, timeout_s=timeout_s)
        self._backend(request).metrics.admission_s.observe(self._clock() - asked_s)
        return self._held(granted, request, stream)

    def _backend(self, request: Open) -> ModelBackend:
        """What runs an admitted session. By the hash that its edge named, and by nothing else."""
        return self._backends[request.model_sha256]

    def _moves(self, request: Open) -> MovedSessions | None:
        backend = self._backends.get(request.model_sha256)
        return None if backend is None else backend.moves

    def _held(self, granted: Granted, request: Open, stream: ServerStream) -> HeldSession:
        drafts = granted.session.drafts
        return HeldSession(
            granted.life,
            ActiveSession(
                granted.session,
                stream.deliver(),
                draft_state=drafts,
                num_draft_ids=0 if drafts is None else drafts.most,
            ),
            request,
            lifecycle=self._lifecycle,
            engine_loop=self._backend(request).thread,
            on_freed=self._admission.serve_queue,
        )

    async def _converse(
        self, on_stream: _OnStream, active: ActiveSession, held_frames: int
    ) -> None:
        """Opened, frames and answers; at the end close the session, keep it or leave it."""
        stream, request = on_stream.stream, on_stream.request
        backend = self._backend(request)
        reader: asyncio.Task[None] | None = None
        failed: CloudError | None = None
        try:
            await stream.say_opened(
                Opened(
                    session_id=request.session_id,
                    max_frame_tokens=backend.sessions.served.max_frame_tokens,
                    held_frames=held_frames,
                    max_frames_in_flight=self._max_frames_in_flight,
                    token_rows=_granted_token_rows(request, active.session),
                    draft_ids=active.num_draft_ids,
                    max_positions=active.session.max_positions,
                    recall=active.session.recalls,
                    continued=on_stream.held is not None and on_stream.held.is_moving,
                )
            )
            reader = asyncio.create_task(stream.read_frames(active, backend.thread))
            await stream.write_answers()
        except CloudError as error:
            failed = error
            raise
        finally:
            if reader is not None:
                reader.cancel()
            freed = self._leave(on_stream, failed)
            del failed  # it refers to this frame by its traceback
        if freed is None:
            return
        # Only a stream that ends in peace waits for its memory to be free and says so.
        # Shielded: a client that goes away now must not cancel the freeing. Otherwise another
        # session would get the place before the memory is free.
        await asyncio.shield(asyncio.wrap_future(freed))
        await stream.write(Closed())

    def _leave(self, on_stream: _OnStream, failed: CloudError | None) -> Future[None] | None:
        """The stream is over. None where its session lives on."""
        if is_latest := self._latest.get(on_stream.key) is on_stream:
            del self._latest[on_stream.key]
        if (held := on_stream.held) is None:
            return None
        # Only the latest session of a name can be asked for again.
        said_close = on_stream.stream.said_close
        broke = is_latest and failed is None and not said_close and held.is_alive
        resume_s = min(on_stream.request.resume_s, self._max_resume_s)
        if broke and resume_s > 0 and not self._admission.draining:
            self._log("session_parked", on_stream, resume_s=resume_s)
            self._resumable.keep(held, resume_s)
            return None
        self._log("session_ended", on_stream, error=type(failed).__name__ if failed else None)
        return held.close()

    def _take_over(
        self, key: SessionKey, request: Open, stream: ServerStream
    ) -> HeldSession | None:
        """The session that `request` continues; its answers go to `stream` from now on.

        It is resumable, or on a stream that is dead but does not know it yet. None: the session
        begins anew, and an older stream of that name ends.
        """
        older = self._latest.pop(key, None)
        if older is None or older.held is None:
            return self._resumable.claim(key, request, stream.deliver())
        _replace(older)
        held = older.held
        both_want = request.resume_s > 0 and older.request.resume_s > 0
        if both_want and held.can_continue_as(request) and held.resume(stream.deliver()):
            older.hand_over()
            return held
        held.close()
        return None

    def _check_open(self, key: SessionKey) -> None:
        """Refuse an Open where no session may begin or go on: a server that drains or has failed.

        Its client gave up an older stream of this session, so that one ends too.
        """
        try:
            self._admission.check_open()
        except CloudError:
            if key in self._latest:
                _replace(self._latest[key])
            raise

    def _log(self, name: str, on_stream: _OnStream, **fields: object) -> None:
        stream = on_stream.stream
        event(
            logger,
            name,
            session=on_stream.key.session_id[:8],  # enough to tell apart; the whole is a secret
            tenant=on_stream.key.tenant,
            model=on_stream.model,
            trace_id=on_stream.trace,
            frames=stream.num_frames or None,
            tokens=stream.num_tokens or None,
            seconds=round(self._clock() - stream.opened_s, 3),
            **fields,
        )


def _granted_token_rows(request: Open, session: FrameSession) -> int:
    return min(request.token_rows, session.token_rows)


def _replace(older: _OnStream) -> None:
    """End a stream whose session another stream opened again."""
    older.stream.end(ReplacedError("another stream opened this session again"))

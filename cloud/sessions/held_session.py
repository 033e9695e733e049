"""A session that holds KV blocks: its life, its place in the engine, and how it closes.

Whatever ends a session (Close, an error, a timer, another session that needs the room) ends it
through `HeldSession.close`. The model thread frees the blocks before its next batch.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from cloud.engine.loop_commands import ActiveSession, Deliver
from cloud.sessions.lifecycle import (
    Lifecycle,
    SessionEvent,
    SessionKey,
    SessionLife,
    SessionState,
)
from cloud.sessions.session import ServerSession
from protos.messages import Open


class SessionCloser(Protocol):
    """The part of `EngineLoop` that frees a session; the future is done once it is free."""

    def close(self, active: ActiveSession) -> Future[None]: ...


class HeldSession:
    """See the module's docstring. Lives on the event loop's thread."""

    def __init__(
        self,
        life: SessionLife,
        active: ActiveSession,
        request: Open,
        *,
        lifecycle: Lifecycle,
        engine_loop: SessionCloser,
        on_freed: Callable[[], None],
    ) -> None:
        """life: an admitted session's. on_freed: called on the event loop once the blocks are
        free and the lifecycle knows."""
        self.active = active
        self._life = life
        self._request = request
        self._lifecycle = lifecycle
        self._engine_loop = engine_loop
        self._on_freed = on_freed
        self._freed: Future[None] | None = None

    @property
    def key(self) -> SessionKey:
        """Whose session it is."""
        return self._life.key

    @property
    def is_alive(self) -> bool:
        """Whether it can go on: it does not close, and no error ended it in the engine."""
        closes = self._life.state in (SessionState.CLOSING, SessionState.FREED)
        return not closes and not self.active.is_dropped

    @property
    def is_moving(self) -> bool:
        """Whether keys and values of its first tokens are still to come."""
        session = self.active.session
        return isinstance(session, ServerSession) and session.is_moving

    def can_continue_as(self, request: Open) -> bool:
        """Whether `request` asks for this very session, and it is alive.

        One whose first tokens have not all come is none to go on with: the edge has its keys and
        values no more.
        """
        is_whole = self.is_alive and not self.is_moving
        return is_whole and _same_terms(self._request, request)

    def resume(self, deliver: Deliver) -> bool:
        """Let another stream have its answers. False: an error has ended it, and it closes."""
        self.active.answer_to(deliver)
        # Asked after the change: an error that the old receiver got is known by now.
        if self.active.is_dropped:
            self.close()
            return False
        self._lifecycle.apply(self._life, SessionEvent.RESUME)
        return True

    def keep_without_stream(self) -> None:
        """Its stream broke. Answers are remembered, and the next stream asks for them again."""
        self._lifecycle.apply(self._life, SessionEvent.BREAK)
        self.active.answer_to(_discard)

    def close(self) -> Future[None]:
        """Free its blocks; the future is done when they are free. Closing twice is closing once."""
        if self._freed is None:
            event_loop = asyncio.get_running_loop()

            def settle(_: Future[None]) -> None:
                with contextlib.suppress(RuntimeError):  # the loop of a server that has stopped
                    event_loop.call_soon_threadsafe(self._settle)

            self._lifecycle.apply(self._life, SessionEvent.CLOSE)
            self._freed = self._engine_loop.close(self.active)
            self._freed.add_done_callback(settle)
        return self._freed

    def _settle(self) -> None:
        self._lifecycle.apply(self._life, SessionEvent.FREE)
        self._on_freed()


def _same_terms(first: Open, second: Open) -> bool:
    """Whether two Opens ask for the same session."""
    return _terms(first) == _terms(second)


def _terms(request: Open) -> tuple[object, ...]:
    return (
        request.model_sha256,
        request.hidden_size,
        request.split,
        request.max_tokens,
        request.codec_tables_sha256,
        request.sampling,
        request.prompt_tokens,
        request.end_token_ids,
        request.max_positions,
        request.entropies,
    )


def _discard(_: object) -> None:
    """Nobody listens."""

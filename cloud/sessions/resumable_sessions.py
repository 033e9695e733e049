"""Sessions whose stream broke, kept for a while for a stream that opens them again.

They keep their KV and count as sessions, but they give way: whoever needs room takes it from the
session that has been resumable longest. Lives on the event loop's thread.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from cloud.engine.loop_commands import Deliver
from cloud.sessions.held_session import HeldSession
from cloud.sessions.lifecycle import Lifecycle, SessionKey, SessionState
from protos.messages import Open


class _Kept(NamedTuple):
    held: HeldSession
    timer: asyncio.TimerHandle


class ResumableSessions:
    """The resumable sessions by key, each with the timer that ends it."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._kept: dict[SessionKey, _Kept] = {}

    def keep(self, held: HeldSession, ttl_s: float) -> None:
        """Keep it for `ttl_s`, or until `claim` takes it or somebody needs the room.

        Another session under its key is closed, because nobody could reach that one any more.
        """
        if held.key in self._kept:
            self._close(held.key)
        held.keep_without_stream()
        timer = asyncio.get_running_loop().call_later(ttl_s, self._close, held.key)
        self._kept[held.key] = _Kept(held, timer)

    def claim(self, key: SessionKey, request: Open, deliver: Deliver) -> HeldSession | None:
        """The session that `request` continues, with `deliver` to get its answers; None: none.

        A session of other terms, or one that an error ended meanwhile, is closed: its id begins
        anew.
        """
        held = self.take(key)
        if held is None:
            return None
        if not held.can_continue_as(request):
            held.close()
            return None
        return held if held.resume(deliver) else None

    def take(self, key: SessionKey) -> HeldSession | None:
        """The session of this key, which is kept here no longer; None: none."""
        kept = self._kept.pop(key, None)
        if kept is None:
            return None
        kept.timer.cancel()
        return kept.held

    def close_oldest(self, tenant: str | None = None, *, model: str | None = None) -> bool:
        """Close the session that has been here longest; of this tenant and model where named.

        False: there is none.
        """
        life = self._lifecycle.oldest(SessionState.RESUMABLE, tenant, model)
        if life is None:
            return False
        self._close(life.key)
        return True

    def close_all(self) -> None:
        """Close every one of them."""
        while self.close_oldest():
            pass

    def _close(self, key: SessionKey) -> None:
        held, timer = self._kept.pop(key)
        timer.cancel()
        held.close()

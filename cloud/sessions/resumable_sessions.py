"""Sessions whose stream broke, kept for a while for a stream that opens them again.

They hold their KV and count as sessions, but give way: whoever needs room takes it from the
one parked longest. Lives on the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from cloud.engine.loop import Client
from cloud.sessions.tenants import Tenant
from protos.messages import Open


class Key(NamedTuple):
    """Whose session it is. The id is its secret: unguessable, and only the same tenant's."""

    tenant: str
    session_id: str


class Parked(NamedTuple):
    """A session without a stream, and the Open that it began with."""

    client: Client
    request: Open
    tenant: Tenant


class ResumableSessions:
    """free: called with each session that nobody came back for, in time or in room."""

    def __init__(self, free: Callable[[Parked], None]) -> None:
        self._free = free
        self._parked: OrderedDict[Key, tuple[Parked, asyncio.TimerHandle]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._parked)

    def park(self, key: Key, parked: Parked, ttl_s: float) -> None:
        """Keep it for `ttl_s`, or until `claim` takes it or room is needed.

        Another one under this key is freed: it would be out of everybody's reach.
        """
        if key in self._parked:
            self._drop(key)
        timer = asyncio.get_running_loop().call_later(ttl_s, self._drop, key)
        self._parked[key] = (parked, timer)

    def claim(self, key: Key, request: Open) -> Parked | None:
        """The session that `request` continues, if it is here, alive and of the same terms.

        One of other terms, or one that an error ended meanwhile, is freed: its id begins anew.
        """
        entry = self._parked.pop(key, None)
        if entry is None:
            return None
        parked, timer = entry
        timer.cancel()
        if parked.client.closed or not same_terms(parked.request, request):
            self._free(parked)
            return None
        return parked

    def drop_oldest(self, tenant: str | None = None) -> bool:
        """Free the session parked longest, of this tenant if one is named; False: there is none."""
        for key in self._parked:
            if tenant is None or key.tenant == tenant:
                self._drop(key)
                return True
        return False

    def drop_all(self) -> None:
        while self.drop_oldest():
            pass

    def _drop(self, key: Key) -> None:
        parked, timer = self._parked.pop(key)
        timer.cancel()
        self._free(parked)


def same_terms(first: Open, second: Open) -> bool:
    """Whether two Opens ask for the same session."""
    return (first.split, first.max_tokens, first.codec_tables_sha256, first.sampling) == (
        second.split,
        second.max_tokens,
        second.codec_tables_sha256,
        second.sampling,
    )

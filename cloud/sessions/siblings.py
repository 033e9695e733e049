"""The other servers behind the same address, as far as one server's decisions need them.

A server that stands alone has none: `Alone`. A replica of a cluster asks `cloud.cluster`, so that
a tenant's limits hold for all replicas together. Lives on the event loop's thread.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from cloud.sessions.lifecycle import SessionKey
from cloud.sessions.tenants import RateLimits, Tenant


class Elsewhere(NamedTuple):
    """The replica with the most room: its name, and when to ask it."""

    replica: str
    retry_after_s: float


class Siblings(Protocol):
    """What a server asks of the others, and tells them."""

    async def wait_s(self, tenant: Tenant, num_rows: int, *, at_s: float) -> float:
        """How long a frame of `num_rows` rows has to wait for its tenant's rate, in seconds."""
        ...

    async def check_place(self, tenant: Tenant, key: SessionKey, num_here: int) -> None:
        """Raise CapacityError where the tenant has all its sessions, here and elsewhere.

        num_here: its sessions on this server, with the one of `key` that wants to begin.
        """
        ...

    def took_over(self, key: SessionKey, replica: str) -> None:
        """A session begins anew here that `replica` held: that one need not keep it."""
        ...

    def with_room(self) -> Elsewhere | None:
        """Where a client may go that this server has no room for; None: nowhere is known."""
        ...


class Alone:
    """A server without siblings."""

    def __init__(self) -> None:
        self._rates = RateLimits()

    async def wait_s(self, tenant: Tenant, num_rows: int, *, at_s: float) -> float:
        """See Siblings."""
        return self._rates.wait_s(tenant, num_rows, at_s=at_s)

    async def check_place(self, tenant: Tenant, key: SessionKey, num_here: int) -> None:
        """See Siblings: this server has checked its own sessions."""

    def took_over(self, key: SessionKey, replica: str) -> None:
        """See Siblings: there is nobody to tell."""

    def with_room(self) -> None:
        """See Siblings."""
        return

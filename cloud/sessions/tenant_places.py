"""Whether a tenant may have one more session: by its limit, here and over all siblings."""

from __future__ import annotations

from collections import Counter
from typing import Final

from cloud.errors import CapacityError
from cloud.sessions.lifecycle import Lifecycle, SessionKey
from cloud.sessions.resumable_sessions import ResumableSessions
from cloud.sessions.siblings import Siblings
from cloud.sessions.tenants import Tenant

_ALL_OPEN: Final = "{name} has all its {most} sessions open"


class TenantPlaces:
    """Lives on the event loop's thread."""

    def __init__(
        self, lifecycle: Lifecycle, resumable: ResumableSessions, siblings: Siblings
    ) -> None:
        self._lifecycle = lifecycle
        self._resumable = resumable
        self._siblings = siblings
        self._asking: Counter[str] = Counter()  # sessions that ask the siblings now

    def num_of(self, tenant: str) -> int:
        """Sessions of this tenant here, those among them that ask to begin."""
        return self._lifecycle.num_of_tenant(tenant) + self._asking[tenant]

    def counts(self) -> dict[str, int]:
        """`num_of` for every tenant that has a session here."""
        names = {life.key.tenant for life in self._lifecycle.counted()} | set(+self._asking)
        return {name: self.num_of(name) for name in names}

    async def check(self, tenant: Tenant, key: SessionKey) -> None:
        """Raise CapacityError where the tenant has all its sessions, and none is resumable here.

        Whoever asked must begin the session before anybody else runs.
        """
        if tenant.sessions is None:
            return
        while self.num_of(tenant.name) >= tenant.sessions:
            if not self._resumable.close_oldest(tenant.name):
                raise CapacityError(_ALL_OPEN.format(name=tenant.name, most=tenant.sessions))
        self._asking[tenant.name] += 1
        try:
            await self._siblings.check_place(tenant, key, self.num_of(tenant.name))
        finally:
            self._asking[tenant.name] -= 1

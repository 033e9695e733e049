"""How many beginnings a tenant's devices may name in vain, where a name is not a secret.

A name that is found tells that somebody sent that text. Where names begin with a device's secret
(`Open.prefix_salt`), nobody else can make one. Without it, whoever holds the tenant's token can
name guesses. So guesses that miss are counted, and once there were too many, nothing is found for
a while: the session begins without a shared beginning, and is otherwise the same. Ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from cloud.sessions.tenants import Bucket

# A prompt of 32,768 tokens in frames of 128 is named once in vain; then a name each second.
BURST_MISSES: Final = 256
MISSES_PER_S: Final = 1.0


class PrefixGuesses:
    """A bucket of misses for each tenant: no more tenants than the token file has lines."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}

    def allowed(self, tenant: str) -> int:
        """How many names may be looked up now: each of them could miss."""
        return max(0, int(self._take(tenant, 0).level))

    def missed(self, tenant: str, count: int) -> None:
        """Count names that were looked up and not found."""
        self._take(tenant, count)

    def _take(self, tenant: str, count: int) -> Bucket:
        now_s = self._clock()
        bucket = self._buckets.get(tenant) or Bucket(
            rate=MISSES_PER_S, burst=BURST_MISSES, level=BURST_MISSES, at_s=now_s
        )
        self._buckets[tenant], _ = bucket.take(count, at_s=now_s)
        return self._buckets[tenant]

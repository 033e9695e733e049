"""Beginnings of sessions that were run already, kept for sessions that begin the same.

An entry is named by a chain hash over frames (`protos.prefix`) under a key of this server and the
tenant's name, so that nobody can ask whether somebody else has sent a prompt. It holds its blocks
only as long as nobody needs them: the one used longest ago goes first.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cloud.kv.pool import KvLease, KvPool, SharedPrefix

MAX_ENTRIES: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """The first frames of a session. tokens: the input tokens of its positions."""

    blocks: SharedPrefix
    tokens: tuple[int, ...]
    num_frames: int
    chain: bytes


class PrefixCache:
    """Finds and keeps beginnings. Used by the event loop and the model thread alike."""

    def __init__(self, pool: KvPool) -> None:
        self._pool = pool
        self._secret = secrets.token_bytes(32)
        self._entries: OrderedDict[bytes, Beginning] = OrderedDict()
        pool.reclaim = self.drop_oldest

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, tenant: str, chains: Sequence[bytes]) -> Beginning | None:
        """The longest beginning among `chains` (hashes after one frame, two, ...).

        Its blocks stay only while `KvPool.lock` is held; lease them under it.
        """
        for chain in reversed(chains):
            name = self._name(tenant, chain)
            if name in self._entries:
                self._entries.move_to_end(name)
                return self._entries[name]
        return None

    def keep(
        self, tenant: str, lease: KvLease, *, tokens: tuple[int, ...], num_frames: int, chain: bytes
    ) -> None:
        """Keep the first len(tokens) positions of a session. They must be whole blocks."""
        name = self._name(tenant, chain)
        with self._pool.lock:
            if name in self._entries:
                self._entries.move_to_end(name)
                return
            while len(self._entries) >= MAX_ENTRIES:
                self.drop_oldest()
            self._entries[name] = Beginning(
                blocks=self._pool.share(lease, len(tokens)),
                tokens=tokens,
                num_frames=num_frames,
                chain=chain,
            )

    def drop_oldest(self) -> bool:
        """Let go of the entry used longest ago; False: there is none."""
        with self._pool.lock:
            if not self._entries:
                return False
            _, entry = self._entries.popitem(last=False)
            self._pool.forget(entry.blocks)
            return True

    def _name(self, tenant: str, chain: bytes) -> bytes:
        return hmac.digest(self._secret, tenant.encode() + b"\0" + chain, hashlib.sha256)

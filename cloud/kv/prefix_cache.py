"""Beginnings of sessions that ran already, kept for sessions that begin the same.

The name of an entry is a chain hash over its frames (`protos.prefix`), under a secret of this
server and the tenant's name. So nobody can find out whether another tenant has sent a prompt.
Within a tenant the same holds for devices that put a secret in front of their names
(`Open.prefix_salt`). An entry holds its blocks only as long as no session needs them: the one used
longest ago goes first.

The pool asks the cache for room, so the cache is made first and given to the pool. The pool's lock
guards both. It must be held for `find` and `drop_oldest`.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from cloud.kv.pool import KvLease, KvPool, SharedPrefix
from cloud.squeezed.fixed_context import FixedContext, Indexing
from codec.arrays import I16
from codec.session_rows import HeldBeginning
from optimizer.policy.kv_blocks import KV_BLOCK_TOKENS

# Input tokens of a beginning, how many frames it took, their chain hash, and its rows, if any.
Keep: TypeAlias = Callable[[tuple[int, ...], int, bytes, HeldBeginning | None], None]

MAX_ENTRIES: Final = 512
# What the entries' input tokens may take beside their blocks: a token is a pointer in a tuple.
MAX_TOKENS_HELD: Final = 1 << 20
# What their rows may take (`Beginning.rows`). Beginnings of one session share them.
MAX_ROW_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """The first frames of a session. tokens: the input tokens of its positions. indexes: of its
    whole segments of keys, where the server has them (`cloud.squeezed`). rows: what frames behind
    them may refer to; None: nothing."""

    blocks: SharedPrefix
    tokens: tuple[int, ...]
    num_frames: int
    chain: bytes
    indexes: tuple[Indexing, ...] = ()
    rows: HeldBeginning | None = None


class _Entry(NamedTuple):
    beginning: Beginning
    pool: KvPool  # whose blocks they are


class PrefixCache:
    """Finds and keeps beginnings. Used by the event loop and the model thread alike."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._num_tokens = 0  # input tokens of all entries
        self._row_arrays: dict[int, list[int]] = {}  # entries that have each, and its bytes

    def find(self, tenant: str, chains: Sequence[bytes]) -> Beginning | None:
        """The longest beginning among `chains` (hashes after one frame, two, ...).

        Its blocks stay only while `KvPool.lock` is held; lease them before you let go of it.
        """
        for chain in reversed(chains):
            name = self._name(tenant, chain)
            if name in self._entries:
                self._entries.move_to_end(name)
                return self._entries[name].beginning
        return None

    def keep(
        self,
        tenant: str,
        lease: KvLease,
        *,
        tokens: tuple[int, ...],
        num_frames: int,
        chain: bytes,
        indexes: tuple[Indexing, ...] = (),
        rows: HeldBeginning | None = None,
    ) -> None:
        """Keep the first len(tokens) positions of a session. They must be whole blocks."""
        name = self._name(tenant, chain)
        pool = lease.pool
        with pool.lock:
            if name in self._entries:
                self._entries.move_to_end(name)
                return
            most_before = MAX_TOKENS_HELD - len(tokens)
            while (
                len(self._entries) >= MAX_ENTRIES
                or self._num_tokens > most_before
                or self.row_bytes + self._further_bytes(rows) > MAX_ROW_BYTES
            ):
                if not self.drop_oldest():
                    return  # larger by itself than all entries may be
            beginning = Beginning(
                blocks=pool.share(lease, len(tokens)),
                tokens=tokens,
                num_frames=num_frames,
                chain=chain,
                indexes=indexes,
                rows=rows,
            )
            self._entries[name] = _Entry(beginning, pool)
            self._num_tokens += len(tokens)
            if rows is not None:
                array = _array_of(rows)
                self._row_arrays.setdefault(id(array), [0, array.nbytes])[0] += 1

    def keeper(
        self,
        tenant: str,
        lease: KvLease,
        shareable_tokens: int,
        context: FixedContext | None = None,
    ) -> Keep | None:
        """How a session tells of its beginnings; None: it may share none. context: the session's,
        which says what indexes go with a beginning, and may keep some back."""
        if not shareable_tokens:
            return None

        def keep(
            tokens: tuple[int, ...], num_frames: int, chain: bytes, rows: HeldBeginning | None
        ) -> None:
            if len(tokens) > shareable_tokens or len(tokens) % KV_BLOCK_TOKENS:
                return
            indexes = () if context is None else context.held(len(tokens))
            if indexes is not None:
                self.keep(
                    tenant,
                    lease,
                    tokens=tokens,
                    num_frames=num_frames,
                    chain=chain,
                    indexes=indexes,
                    rows=rows,
                )

        return keep

    @property
    def row_bytes(self) -> int:
        """Bytes of the rows of all entries."""
        return sum(num_bytes for _, num_bytes in self._row_arrays.values())

    def _further_bytes(self, rows: HeldBeginning | None) -> int:
        if rows is None or id(_array_of(rows)) in self._row_arrays:
            return 0
        return _array_of(rows).nbytes

    def drop_oldest(self) -> bool:
        """Let go of the entry used longest ago; False: there is none."""
        if not self._entries:
            return False
        _, entry = self._entries.popitem(last=False)
        self._num_tokens -= len(entry.beginning.tokens)
        if (rows := entry.beginning.rows) is not None:
            array = id(_array_of(rows))
            self._row_arrays[array][0] -= 1
            if not self._row_arrays[array][0]:
                del self._row_arrays[array]
        entry.pool.forget(entry.beginning.blocks)
        return True

    def _name(self, tenant: str, chain: bytes) -> bytes:
        return hmac.digest(self._secret, tenant.encode() + b"\0" + chain, hashlib.sha256)


def _array_of(rows: HeldBeginning) -> I16:
    """What holds the rows: a beginning is a view of its session's."""
    return rows.values if rows.values.base is None else rows.values.base

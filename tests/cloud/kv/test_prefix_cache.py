"""What the cache finds, for whom, and what it lets go of first."""

from __future__ import annotations

import numpy as np
import pytest

from cloud.kv.pool import KvLease, KvPool, KvShape
from cloud.kv.prefix_cache import PrefixCache
from codec.arrays import I16
from codec.session_rows import HeldBeginning
from optimizer.policy.kv_blocks import KV_BLOCK_TOKENS

SHAPE = KvShape(num_layers=1, num_kv_heads=1, head_dim=2)
CHAINS = [bytes([index]) * 32 for index in range(4)]


def parts(num_blocks: int = 16) -> tuple[PrefixCache, KvPool]:
    cache = PrefixCache()
    limit_bytes = num_blocks * SHAPE.block_bytes
    return cache, KvPool(SHAPE, limit_bytes=limit_bytes, reclaim=cache.drop_oldest)


def lease_of(pool: KvPool, num_blocks: int = 1) -> KvLease:
    num_tokens = 16 * num_blocks
    return pool.lease(split=0, max_tokens=num_tokens, shareable_tokens=num_tokens)


def keep(cache: PrefixCache, lease: KvLease, chain: bytes, num_blocks: int = 1) -> None:
    tokens = tuple(range(16 * num_blocks))
    cache.keep("one", lease, tokens=tokens, num_frames=num_blocks, chain=chain)


def test_the_longest_beginning_that_is_there_is_found() -> None:
    cache, pool = parts()
    lease = lease_of(pool, 2)
    keep(cache, lease, CHAINS[0])
    keep(cache, lease, CHAINS[1], 2)
    found = cache.find("one", CHAINS)
    assert found is not None
    assert (found.num_frames, found.blocks.num_tokens) == (2, 32)
    shorter = cache.find("one", CHAINS[:1])
    assert shorter is not None
    assert shorter.num_frames == 1
    assert cache.find("one", CHAINS[2:]) is None
    assert cache.find("two", CHAINS) is None


def test_room_is_made_of_the_beginning_used_longest_ago() -> None:
    cache, pool = parts(num_blocks=2)
    for chain in CHAINS[:2]:
        lease = lease_of(pool)
        keep(cache, lease, chain)
        lease.close()
    assert cache.find("one", CHAINS[:1]) is not None  # used: the other one is older now
    lease_of(pool)
    assert cache.find("one", CHAINS[1:2]) is None
    assert cache.find("one", CHAINS[:1]) is not None
    lease_of(pool)
    assert cache.find("one", CHAINS) is None
    assert not cache.drop_oldest()


def test_there_are_never_more_entries_than_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud.kv.prefix_cache.MAX_ENTRIES", 2)
    cache, pool = parts()
    for chain in CHAINS[:3]:
        keep(cache, lease_of(pool), chain)
    assert cache.find("one", CHAINS[:1]) is None
    assert cache.find("one", CHAINS[2:3]) is not None


def test_the_entries_tokens_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud.kv.prefix_cache.MAX_TOKENS_HELD", 40)
    cache, pool = parts()
    for chain in CHAINS[:3]:
        keep(cache, lease_of(pool), chain)
    assert cache.find("one", CHAINS[:1]) is None
    assert cache.find("one", CHAINS[1:2]) is not None
    keep(cache, lease_of(pool, 3), CHAINS[3], 3)  # 48 tokens: more than all may have
    assert cache.find("one", CHAINS) is None


def test_a_beginning_that_is_there_already_is_kept_once() -> None:
    cache, pool = parts()
    for _ in range(2):
        lease = lease_of(pool)
        keep(cache, lease, CHAINS[0])
        lease.close()
    assert pool.cached_blocks == 1


def test_the_rows_that_entries_hold_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beginnings of one session are views of one array, which counts once."""
    monkeypatch.setattr("cloud.kv.prefix_cache.MAX_ROW_BYTES", 3 * KV_BLOCK_TOKENS * 2 * 8)
    cache, pool = parts()
    values = np.zeros((2 * KV_BLOCK_TOKENS, 8), dtype=np.int16)

    def keep_rows(name: bytes, held: I16, num_blocks: int) -> None:
        count = num_blocks * KV_BLOCK_TOKENS
        rows = HeldBeginning(tuple(range(count)), held[:count], np.ones(count, dtype=np.bool_))
        with lease_of(pool, num_blocks) as lease:
            lease.length = count
            cache.keep(
                "one", lease, tokens=tuple(range(count)), num_frames=1, chain=name, rows=rows
            )

    keep_rows(b"a", values, 1)
    keep_rows(b"b", values, 2)
    assert cache.row_bytes == values.nbytes
    keep_rows(b"c", values.copy(), 2)  # there is no room for both arrays
    with pool.lock:
        assert cache.find("one", [b"a"]) is None
        assert cache.find("one", [b"b"]) is None
        assert cache.find("one", [b"c"]) is not None
    assert cache.row_bytes == values.nbytes

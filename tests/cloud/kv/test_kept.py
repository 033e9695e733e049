"""Tokens leave a lease: the rows that stay lie together, in every layer, whatever the extents."""

from __future__ import annotations

import random

import pytest
import torch

from cloud.kv.kept import keep_places
from cloud.kv.pool import KvLease, KvPool, KvShape
from optimizer.policy.kv_blocks import KV_BLOCK_TOKENS

LAYERS = 3
SHAPE = KvShape(num_layers=LAYERS, num_kv_heads=1, head_dim=2)


def filled(lease: KvLease, length: int) -> None:
    """Give every row of every layer a number of its own."""
    for layer in range(lease.num_layers):
        for place in range(length):
            row_of(lease, layer, place)[:] = 1000 * layer + place
    lease.length = length


def row_of(lease: KvLease, layer: int, place: int) -> torch.Tensor:
    (span,) = lease.spans(place, place + 1)
    return lease.pool.arena[span.row + layer * span.stride]


def scattered_lease(pool: KvPool) -> KvLease:
    """One of several extents: every other block of the pool is taken."""
    taken = [pool.lease(split=0, max_tokens=KV_BLOCK_TOKENS) for _ in range(6)]
    for lease in taken[::2]:
        lease.close()
    return pool.lease(split=0, max_tokens=3 * KV_BLOCK_TOKENS)


@pytest.mark.parametrize("seed", range(20))
def test_rows_move_together_in_every_layer(seed: int) -> None:
    rng = random.Random(seed)
    pool = KvPool(SHAPE, limit_bytes=6 * LAYERS * SHAPE.block_bytes)
    with scattered_lease(pool) as lease:
        assert len(lease.segments) > 1
        length = rng.randint(1, lease.max_tokens)
        filled(lease, length)
        places = sorted(rng.sample(range(length), rng.randint(0, length)))
        keep_places(lease, places)
        assert (lease.length, lease.num_left) == (len(places), length - len(places))
        for layer in range(LAYERS):
            for at, place in enumerate(places):
                assert row_of(lease, layer, at).eq(1000 * layer + place).all()


def test_the_next_round_counts_what_left_before() -> None:
    pool = KvPool(SHAPE, limit_bytes=6 * LAYERS * SHAPE.block_bytes)
    with pool.lease(split=1, max_tokens=10) as lease:
        filled(lease, 10)
        keep_places(lease, [0, 5, 9])
        lease.length = 8
        keep_places(lease, [1, 2])
        assert (lease.length, lease.num_left) == (2, 13)


def test_rows_that_others_read_stay_where_they_are() -> None:
    pool = KvPool(SHAPE, limit_bytes=6 * LAYERS * SHAPE.block_bytes)
    with pool.lease(split=0, max_tokens=40, shareable_tokens=16) as lease:
        filled(lease, 32)
        pool.share(lease, 16)
        with pytest.raises(ValueError, match="other sessions"):
            keep_places(lease, [0, 2, 31])
        keep_places(lease, [*range(16), 30])
        assert row_of(lease, 0, 16).eq(30).all()

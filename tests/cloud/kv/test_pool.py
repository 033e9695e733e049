"""The KV pool's books: exact to the byte, freed once, zero at the end."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch

from cloud.errors import BadOpenError, CapacityError, StartError
from cloud.kv.pool import KvLease, KvPool, KvShape, SharedPrefix
from optimizer.policy.kv_blocks import KV_BLOCK_TOKENS, reserved_tokens, tokens_in

SHAPE = KvShape(num_layers=30, num_kv_heads=3, head_dim=64)


def test_a_lease_costs_k_and_v_of_its_layers_for_all_its_tokens() -> None:
    pool = KvPool(SHAPE, limit_bytes=1 << 30)
    lease = pool.lease(split=10, max_tokens=512)
    assert lease.num_bytes == 2 * 20 * 512 * 3 * 64 * 4 == pool.used_bytes
    (segment,) = lease.segments
    assert segment.extent.run == (0, 20, 32)
    lease.close()
    with pytest.raises(RuntimeError, match="closed"):
        _ = lease.segments


def test_half_precision_costs_half() -> None:
    half = KvShape(num_layers=30, num_kv_heads=3, head_dim=64, dtype=torch.float16)
    assert 2 * half.num_bytes(split=7, max_tokens=99) == SHAPE.num_bytes(split=7, max_tokens=99)


def test_closing_twice_frees_once() -> None:
    pool = KvPool(SHAPE, limit_bytes=1 << 30)
    first, second = (pool.lease(split=29, max_tokens=8) for _ in range(2))
    with first:
        pass
    first.close()
    assert (pool.used_bytes, pool.num_leases) == (second.num_bytes, 1)


def test_what_does_not_fit_now_differs_from_what_never_will() -> None:
    one = SHAPE.num_bytes(split=0, max_tokens=10)
    assert one == SHAPE.num_bytes(split=0, max_tokens=16)  # whole blocks
    pool = KvPool(SHAPE, limit_bytes=2 * one - 1)
    lease = pool.lease(split=0, max_tokens=10)
    with pytest.raises(CapacityError, match=str(one)):
        pool.lease(split=0, max_tokens=10)
    with pytest.raises(BadOpenError, match=str(2 * one - 1)):
        pool.lease(split=0, max_tokens=17)
    assert pool.used_bytes == one
    lease.close()
    pool.lease(split=0, max_tokens=10).close()


def test_an_arena_that_the_machine_does_not_have_is_a_clear_start_error() -> None:
    with pytest.raises(StartError, match="KV cache"):
        KvPool(SHAPE, limit_bytes=1 << 56)


def test_rolling_back_never_lengthens() -> None:
    lease = KvPool(SHAPE, limit_bytes=1 << 30).lease(split=29, max_tokens=8)
    lease.length = 5
    lease.rollback(7)
    assert lease.length == 5
    lease.rollback(2)
    assert lease.length == 2


def test_two_thousand_random_opens_and_closes_end_at_zero() -> None:
    generator = random.Random(3)
    pool = KvPool(SHAPE, limit_bytes=256 << 20)
    open_leases: list[KvLease] = []
    refused = 0
    for _ in range(2000):
        if open_leases and generator.random() < 0.45:
            open_leases.pop(generator.randrange(len(open_leases))).close()
        try:
            open_leases.append(
                pool.lease(split=generator.randrange(30), max_tokens=generator.randint(1, 900))
            )
        except CapacityError:
            refused += 1
        assert pool.used_bytes == sum(lease.num_bytes for lease in open_leases)
        assert pool.used_bytes <= pool.limit_bytes
        assert pool.num_leases == len(open_leases)
    assert refused > 0
    for lease in open_leases:
        lease.close()
    assert (pool.used_bytes, pool.num_leases) == (0, 0)


def test_threads_agree_on_the_books() -> None:
    pool = KvPool(SHAPE, limit_bytes=1 << 30)

    def churn() -> None:
        for _ in range(300):
            pool.lease(split=29, max_tokens=4).close()

    threads = [threading.Thread(target=churn) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (pool.used_bytes, pool.num_leases) == (0, 0)


def test_a_session_whose_room_is_in_holes_gets_them_all() -> None:
    layers = SHAPE.num_layers
    pool = KvPool(SHAPE, limit_bytes=8 * layers * SHAPE.block_bytes)
    leases = [pool.lease(split=0, max_tokens=KV_BLOCK_TOKENS) for _ in range(8)]
    for index in (1, 3, 4, 6):
        leases[index].close()
    lease = pool.lease(split=0, max_tokens=4 * KV_BLOCK_TOKENS)
    assert pool.used_bytes == pool.limit_bytes
    assert [(s.begin, s.end) for s in lease.segments] == [(0, 32), (32, 48), (48, 64)]
    with pytest.raises(CapacityError):
        pool.lease(split=29, max_tokens=1)
    lease.close()
    assert pool.used_bytes == pool.limit_bytes // 2


def test_a_kept_prefix_outlives_its_session_and_is_counted_once() -> None:
    pool = KvPool(SHAPE, limit_bytes=64 << 20)
    first = pool.lease(split=10, max_tokens=200, shareable_tokens=100)
    kept = pool.share(first, 96)
    assert first.num_frozen == kept.num_tokens == 96
    alone = pool.used_blocks
    second = pool.lease(split=10, max_tokens=200, shared=kept)
    assert second.length == 96
    assert pool.used_blocks == alone + 20 * (13 - 6)
    first.close()
    assert pool.used_blocks == 20 * 13  # the shared part is now the second's
    second.close()
    assert (pool.used_blocks, pool.cached_blocks) == (0, 20 * 6)
    pool.forget(kept)
    assert (pool.used_blocks, pool.cached_blocks) == (0, 0)


def test_a_cached_prefix_gives_way_to_a_session() -> None:
    kept: list[SharedPrefix] = []

    def reclaim() -> bool:
        if not kept:
            return False
        pool.forget(kept.pop())
        return True

    pool = KvPool(SHAPE, limit_bytes=30 * 8 * SHAPE.block_bytes, reclaim=reclaim)
    first = pool.lease(split=0, max_tokens=64, shareable_tokens=64)
    kept.append(pool.share(first, 64))
    first.close()
    pool.lease(split=0, max_tokens=64)
    assert len(kept) == 1
    lease = pool.lease(split=0, max_tokens=64)
    assert not kept
    with pytest.raises(CapacityError):
        pool.lease(split=0, max_tokens=1)
    lease.close()


def test_spans_say_where_positions_lie_in_every_layer() -> None:
    pool = KvPool(KvShape(num_layers=3, num_kv_heads=1, head_dim=2), limit_bytes=1 << 20)
    shared = pool.lease(split=1, max_tokens=32, shareable_tokens=16)
    lease = pool.lease(split=1, max_tokens=40, shared=pool.share(shared, 16))
    assert [span.num_rows for span in lease.spans(10, 30)] == [6, 14]
    # Every position of every layer of both sessions has a row of its own, but for the shared ones.
    rows = [
        (span.row + layer * span.stride + offset)
        for layer in range(lease.num_layers)
        for span in (*shared.spans(0, 32), *lease.spans(16, 40))
        for offset in range(span.num_rows)
    ]
    assert len(set(rows)) == len(rows) == 2 * (32 + 24)
    assert list(lease.spans(0, 16)) == list(shared.spans(0, 16))


@pytest.mark.parametrize("num_tokens", [1, 16, 17, 1000, 1008])
def test_plans_count_the_positions_that_a_session_reserves(num_tokens: int) -> None:
    token_bytes = 2 * SHAPE.num_layers * SHAPE.num_kv_heads * SHAPE.head_dim * 4
    reserved = SHAPE.num_bytes(split=0, max_tokens=num_tokens)
    assert reserved_tokens(num_tokens) * token_bytes == reserved
    assert reserved_tokens(np.array([float(num_tokens)])) * token_bytes == reserved
    # A budget of those bytes holds that session, and one byte less does not.
    room = np.array([reserved, reserved - 1]) / token_bytes
    assert list(tokens_in(room) >= num_tokens) == [True, False]

"""The KV pool's books: exact to the byte, freed once, zero at the end."""

from __future__ import annotations

import random
import threading

import pytest
import torch

from cloud.errors import BadOpenError, CapacityError
from cloud.kv_pool import KvLease, KvPool, KvShape

SHAPE = KvShape(num_layers=30, num_kv_heads=3, head_dim=64)


def test_a_lease_costs_k_and_v_of_its_layers_for_all_its_tokens() -> None:
    pool = KvPool(SHAPE, limit_bytes=1 << 30)
    lease = pool.lease(split=10, max_tokens=512)
    assert lease.num_bytes == 2 * 20 * 512 * 3 * 64 * 4 == pool.used_bytes
    assert lease.slab.shape == (20, 2 * 3, 512, 64)
    lease.close()
    with pytest.raises(RuntimeError, match="closed"):
        _ = lease.slab


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
    pool = KvPool(SHAPE, limit_bytes=2 * one - 1)
    lease = pool.lease(split=0, max_tokens=10)
    with pytest.raises(CapacityError, match=str(one)):
        pool.lease(split=0, max_tokens=10)
    with pytest.raises(BadOpenError, match=str(2 * one - 1)):
        pool.lease(split=0, max_tokens=20)
    assert pool.used_bytes == one
    lease.close()
    pool.lease(split=0, max_tokens=10).close()


def test_a_failed_allocation_is_not_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = KvPool(SHAPE, limit_bytes=1 << 30)

    def no_memory(*_: object) -> torch.Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(pool, "_allocate", no_memory)
    with pytest.raises(RuntimeError):
        pool.lease(split=0, max_tokens=8)
    assert (pool.used_bytes, pool.num_leases) == (0, 0)


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
    pool = KvPool(SHAPE, limit_bytes=1 << 40)

    def churn() -> None:
        for _ in range(300):
            pool.lease(split=29, max_tokens=4).close()

    threads = [threading.Thread(target=churn) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (pool.used_bytes, pool.num_leases) == (0, 0)

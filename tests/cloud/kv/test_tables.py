"""Block tables say where every position of every layer lies, whoever comes and goes."""

from __future__ import annotations

import torch

from cloud.kv.pool import KvLease, KvPool, KvShape
from cloud.kv.tables import FIRST_PAGES, FIRST_SLOTS, BlockTables
from optimizer.policy.kv_blocks import KV_BLOCK_TOKENS

SHAPE = KvShape(num_layers=3, num_kv_heads=1, head_dim=2)


def make_pool(num_blocks: int) -> KvPool:
    return KvPool(SHAPE, limit_bytes=num_blocks * SHAPE.block_bytes)


def rows_by_table(tables: BlockTables, lease: KvLease, layer: int) -> list[int]:
    slot = tables.slot(lease)
    rows = []
    for position in range(lease.max_tokens):
        page, offset = divmod(position, KV_BLOCK_TOKENS)
        block = int(tables.base[slot, page]) + layer * int(tables.stride[slot, page])
        rows.append(block * KV_BLOCK_TOKENS + offset)
    return rows


def rows_by_spans(lease: KvLease, layer: int) -> list[int]:
    rows: list[int] = []
    for row, stride, count in lease.spans(0, lease.max_tokens):
        first = row + (layer - lease.split) * stride
        rows.extend(range(first, first + count))
    return rows


def scattered(pool: KvPool, split: int, max_tokens: int) -> KvLease:
    """A lease of several extents: the holes are too small for one."""
    small = [pool.lease(split=0, max_tokens=KV_BLOCK_TOKENS) for _ in range(pool.num_blocks // 3)]
    for lease in small[::2]:
        lease.close()
    return pool.lease(split=split, max_tokens=max_tokens)


def test_a_table_says_what_the_spans_say() -> None:
    pool = make_pool(60)
    tables = BlockTables("cpu")
    pieces = scattered(pool, 1, 70)
    assert len(pieces.segments) > 1
    leases = [make_pool(60).lease(split=2, max_tokens=33), pieces]
    for lease in leases:
        for layer in range(lease.split, SHAPE.num_layers):
            assert rows_by_table(tables, lease, layer) == rows_by_spans(lease, layer)


def test_a_table_goes_on_after_a_shared_beginning() -> None:
    pool = make_pool(60)
    owner = pool.lease(split=1, max_tokens=40, shareable_tokens=32)
    shared = pool.share(owner, 32)
    lease = pool.lease(split=1, max_tokens=50, shared=shared)
    tables = BlockTables("cpu")
    for layer in (1, 2):
        rows = rows_by_table(tables, lease, layer)
        assert rows == rows_by_spans(lease, layer)
        assert rows[:32] == rows_by_table(tables, owner, layer)[:32]


def test_the_line_of_a_closed_lease_is_given_again_and_written_anew() -> None:
    pool = make_pool(200)
    tables = BlockTables("cpu")
    version = tables.version
    for _ in range(3 * FIRST_SLOTS):
        first = pool.lease(split=0, max_tokens=20)
        second = pool.lease(split=1, max_tokens=30)
        for lease in (first, second):
            assert rows_by_table(tables, lease, 2) == rows_by_spans(lease, 2)
            assert tables.slot(lease) == tables.slot(lease)
        first.close()
        second.close()
    assert tables.num_slots == 0
    assert tables.version == version


def test_tables_grow_for_more_and_for_longer_sessions_and_keep_what_they_held() -> None:
    pool = make_pool(3000)
    tables = BlockTables("cpu")
    early = pool.lease(split=0, max_tokens=20)
    before = rows_by_table(tables, early, 1)
    longest = pool.lease(split=2, max_tokens=(FIRST_PAGES + 1) * KV_BLOCK_TOKENS)
    assert rows_by_table(tables, longest, 2) == rows_by_spans(longest, 2)
    after_long = tables.version
    many = [pool.lease(split=2, max_tokens=1) for _ in range(FIRST_SLOTS)]
    assert len({tables.slot(lease) for lease in many}) == FIRST_SLOTS
    assert tables.version > after_long > 0
    assert rows_by_table(tables, early, 1) == before


def test_what_was_reserved_does_not_grow_later() -> None:
    pool = make_pool(3000)
    tables = BlockTables("cpu")
    tables.reserve(slots=200, tokens=4000)
    version = tables.version
    for lease in [pool.lease(split=2, max_tokens=16) for _ in range(200)]:
        tables.slot(lease)
    assert tables.version == version
    assert tables.base.dtype == torch.int32


def test_tables_of_one_step_leave_nothing_with_the_lease() -> None:
    """A session takes part in thousands of steps: each must not stay with it until its end."""
    lease = make_pool(60).lease(split=0, max_tokens=20)
    for _ in range(3):
        tables = BlockTables("cpu", of_one_step=True)
        assert rows_by_table(tables, lease, 1) == rows_by_spans(lease, 1)
    assert lease._on_close == []

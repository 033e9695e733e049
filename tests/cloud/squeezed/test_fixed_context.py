"""Which rows select, which beginnings are kept, and how long indexes live."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cloud.kv.pool import KvLease, KvPool, KvShape
from cloud.kv.prefix_cache import PrefixCache
from cloud.squeezed.fixed_context import FixedContext, Squeezing

SHAPE = KvShape(num_layers=3, num_kv_heads=1, head_dim=16)
SCALES = {1: 0.25, 2: 0.25}


def keys_of(layers: Sequence[int], begin: int, end: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(begin)
    keys = torch.randn(len(layers), 1, end - begin, 16, generator=generator)
    return keys, keys


def context_of(squeezing: Squeezing, shareable: int = 1300) -> FixedContext:
    context = squeezing.begin(split=1, shareable_tokens=shareable)
    assert context is not None
    return context


def run(context: FixedContext, start: int, stop: int) -> None:
    """As a step does that has rows [start, stop)."""
    context.rewind(start)
    positions = context.recorded(start, stop)
    context.take(positions, torch.ones(2, len(positions), 2, 16))
    context.ran(stop, keys_of)


def test_rows_behind_the_prompt_select_and_no_others() -> None:
    context = context_of(Squeezing(0.3, SCALES))
    assert context.num_tokens == 1024
    assert list(context.selecting(1024, 1302)) == [1300, 1301]
    assert list(context.selecting(1310, 1312)) == [1310, 1311]
    assert not context.selecting(1200, 1300)
    assert not context.selecting(1000, 1400)  # its index cannot be there yet


def test_the_prompts_last_tokens_are_never_selected_from() -> None:
    squeezing = Squeezing(0.3, SCALES)
    fixed = {n: context_of(squeezing, n).num_tokens for n in (100, 611, 612, 1123, 1124)}
    assert fixed == {100: 0, 611: 0, 612: 512, 1123: 512, 1124: 1024}
    assert not context_of(squeezing, 611).selecting(700, 800)


@pytest.mark.parametrize(
    ("start", "rows", "most"), [(0, 1300, 1300), (0, 1301, 1024), (1000, 400, 24), (1024, 400, 400)]
)
def test_rows_that_select_wait_for_the_fixed_context(start: int, rows: int, most: int) -> None:
    assert context_of(Squeezing(0.3, SCALES)).most_rows(start, rows) == most


def test_nothing_squeezes_without_a_prompt_to_share_or_a_layer_that_can() -> None:
    squeezing = Squeezing(0.3, SCALES)
    assert squeezing.begin(split=1, shareable_tokens=0) is None
    assert squeezing.begin(split=3, shareable_tokens=1000) is None
    assert Squeezing(0.3, {}).begin(split=0, shareable_tokens=1000) is None


def test_a_beginning_is_kept_where_its_last_queries_are_not_missed() -> None:
    context = context_of(Squeezing(0.3, SCALES))
    run(context, 0, 1300)
    kept = {n: context.held(n) for n in (400, 412, 416, 496, 512, 1008, 1024, 1040)}
    assert {n: None if one is None else len(one) for n, one in kept.items()} == {
        400: 0,
        412: 0,
        416: None,
        496: None,
        512: 1,
        1008: None,
        1024: 2,
        1040: 2,
    }


def test_a_segment_without_its_queries_is_not_indexed() -> None:
    context = context_of(Squeezing(0.3, SCALES))
    context.ran(1300, keys_of)
    assert context.index() is None
    assert context.held(512) is None


def test_an_index_that_fails_leaves_the_session_exact(caplog: pytest.LogCaptureFixture) -> None:
    context = context_of(Squeezing(0.3, SCALES))
    run(context, 0, 600)

    def broken(layers: Sequence[int], begin: int, end: int) -> tuple[Tensor, Tensor]:
        return torch.empty(0), torch.empty(0)

    positions = context.recorded(600, 1100)
    context.take(positions, torch.ones(2, len(positions), 2, 16))
    context.ran(1100, broken)
    assert context.index() is None
    assert "indexing" in caplog.text


def test_ratio_one_selects_everything() -> None:
    context = context_of(Squeezing(1.0, SCALES))
    run(context, 0, 1300)
    index = context.index()
    assert index is not None
    assert index.threshold == -math.inf
    assert index.select(1, torch.randn(2, 16)).keys.all()


def kept(cache: PrefixCache, lease: KvLease, squeezing: Squeezing, chain: bytes) -> None:
    """A session that runs 1,024 rows, leaves them in the cache, and ends."""
    context = context_of(squeezing)
    keep = cache.keeper("one", lease, 1300, context)
    assert keep is not None
    for number, stop in enumerate((480, 1024), start=1):
        run(context, 480 if stop == 1024 else 0, stop)
        keep(tuple(range(stop)), number, chain * number, None)
    lease.close()


def test_indexes_live_as_long_as_a_kept_beginning_and_no_longer() -> None:
    cache, squeezing = PrefixCache(), Squeezing(0.3, SCALES)
    pool = KvPool(SHAPE, limit_bytes=1 << 22, reclaim=cache.drop_oldest)
    lease = pool.lease(split=1, max_tokens=1400, shareable_tokens=1300)
    kept(cache, lease, squeezing, b"a")
    assert cache.find("one", [b"a"]) is None  # 480 tokens: the last queries would be missed
    found = cache.find("one", [b"a", b"aa"])
    assert found is not None
    assert [one.result() is not None for one in found.indexes] == [True, True]
    kv_bytes = SHAPE.num_bytes(split=1, max_tokens=1024)
    assert 0 < squeezing.num_bytes < kv_bytes / 12
    del found
    assert cache.drop_oldest()
    gc.collect()
    assert squeezing.num_bytes == 0

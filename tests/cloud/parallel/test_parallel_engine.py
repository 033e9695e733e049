"""A back over two processes against the same back in one: every split, drafts, families, int8."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
import transformers

from cloud.engine.back_engine import BackEngine
from cloud.engine.back_weights import load_back
from cloud.engine.batch_entry import BatchEntry, FloatRows
from cloud.kv.pool import KvLease, KvPool
from cloud.parallel.followers import Followers
from cloud.parallel.parallel_engine import ParallelEngine
from optimizer.export.back import write_back
from optimizer.export.sources.model_source import open_source
from tests.optimizer.export.plans import make_plan
from tests.tiny_models import make_tiny_model

NUM_TOKENS = 24
LIMIT = 1 << 24
# Grouped queries; norms of q and k; windows and soft caps; norms after attention; joined
# projections; biases of all linears; experts.
CASES = [
    ("llama", 32), ("qwen3", 32), ("gemma2", 32), ("phi3", 32), ("starcoder2", 32),
    ("qwen2", 8), ("phi3", 8), ("qwen3_moe", 8),
]  # fmt: skip
# Each rank rounds its own inputs to 15 bits, with a scale of its own (`cloud.engine.int8_linear`).
MOST_ERROR = {32: 1e-5, 8: 2e-3}


class Both(NamedTuple):
    """The same back over two ranks and over one, each with a pool."""

    bits: int
    two: ParallelEngine
    two_pool: KvPool
    one: BackEngine
    one_pool: KvPool

    def leases(self, split: int, **given: Any) -> tuple[KvLease, KvLease]:
        many = {"split": split, "max_tokens": NUM_TOKENS, **given}
        return self.two_pool.lease(**many), self.one_pool.lease(**many)

    def compare(self, got: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
        for mine, right in zip(got, expected, strict=True):
            assert mine.shape == right.shape
            error = float((mine - right).norm() / right.norm()) if right.numel() else 0.0
            assert error < MOST_ERROR[self.bits]
            if self.bits == 32:
                assert torch.equal(mine.argmax(-1), right.argmax(-1))


@pytest.fixture(scope="module")
def followers() -> Iterator[Followers]:
    found = Followers(["cpu", "cpu"], threads=1)
    yield found
    found.close()
    assert all(one.poll() is not None for one in found.processes)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def both(
    request: pytest.FixtureRequest, followers: Followers, tmp_path_factory: pytest.TempPathFactory
) -> Both:
    transformers.logging.disable_progress_bar()
    name, bits = request.param
    root = tmp_path_factory.mktemp(name)
    folder = root / "cloud"
    make_tiny_model(name, root)
    source = open_source(root)
    folder.mkdir()
    write_back(source, make_plan(source, 0, back_bits=bits), folder)
    files = sorted(folder.glob("*.safetensors"))
    two = ParallelEngine.load(followers, folder, first_layer=0, weight_files=files)
    one = BackEngine(load_back(folder, first_layer=0, weight_files=files))
    return Both(bits, two, two.make_pool(LIMIT), one, KvPool(one.kv_shape, limit_bytes=LIMIT))


def some_rows(both: Both, seed: int, count: int = NUM_TOKENS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, both.one.hidden_size, generator=generator)


def entries(lease: KvLease, rows: torch.Tensor, **given: Any) -> BatchEntry:
    return BatchEntry(lease=lease, rows=rows, **{"num_logits": len(rows), **given})


def test_prefill_and_steps_at_every_split_equal_those_of_one_rank(both: Both) -> None:
    rows = some_rows(both, 1)
    for split in range(both.one.num_layers + 1):
        two, one = both.leases(split)
        for begin, end in ((0, 12), (12, 13), (13, 14), (14, NUM_TOKENS)):
            part = rows[begin:end]
            both.compare(
                both.two.forward([entries(two, part)]), both.one.forward([entries(one, part)])
            )
        assert two.length == one.length == NUM_TOKENS
        two.close()
        one.close()


def test_sessions_of_every_split_share_batches_with_drafts_that_are_rolled_back(both: Both) -> None:
    splits = list(range(both.one.num_layers))
    leases = [both.leases(split) for split in (*reversed(splits), *splits)]
    given = [some_rows(both, 10 + index) for index in range(len(leases))]

    def step(begin: int, end: int, wrong: int = 0) -> None:
        """Rows [begin, end) of every session, and `wrong` drafts after them."""
        batches: list[list[BatchEntry]] = [[], []]
        for index, pair in enumerate(leases):
            drafts = some_rows(both, 90 + index, wrong)
            rows = torch.cat([given[index][begin:end], drafts])
            logits = min(len(rows), 1 + index % 3)
            for side, lease in enumerate(pair):
                batches[side].append(entries(lease, rows, num_logits=logits))
        both.compare(both.two.forward(batches[0]), both.one.forward(batches[1]))
        for pair in leases:
            for lease in pair:
                lease.rollback(end)

    step(0, 9)
    step(9, 10, wrong=4)
    step(10, 12, wrong=2)
    step(12, 13)
    for pair in leases:
        for lease in pair:
            lease.close()
    assert both.two_pool.used_bytes == both.one_pool.used_bytes == 0


def test_rows_below_the_split_and_scores_of_a_prompt_equal_those_of_one_rank(both: Both) -> None:
    rows = some_rows(both, 2)
    seen: tuple[list[FloatRows], list[FloatRows]] = ([], [])
    outputs = []
    pairs = (both.leases(2), both.leases(0, stop=2))
    engines: tuple[ParallelEngine | BackEngine, ...] = (both.two, both.one)
    for side, engine in enumerate(engines):
        outputs.append(
            engine.forward(
                [
                    entries(
                        pairs[0][side],
                        rows,
                        num_logits=1,
                        below=pairs[1][side],
                        num_watched=5,
                        watch=lambda _, logits, side=side: seen[side].append(logits),
                    )
                ]
            )
        )
    both.compare(outputs[0], outputs[1])
    both.compare([torch.from_numpy(seen[0][0])], [torch.from_numpy(seen[1][0])])
    for pair in pairs:
        for lease in pair:
            lease.close()


def test_a_history_in_several_extents_is_the_same_on_every_rank(both: Both) -> None:
    rows = some_rows(both, 3, 40)
    outputs = []
    for engine, pool in ((both.two, both.two_pool), (both.one, both.one_pool)):
        first = pool.lease(split=1, max_tokens=40, shareable_tokens=16)
        engine.forward([entries(first, rows[:20], num_logits=0)])
        shared = pool.share(first, 16)
        second = pool.lease(split=1, max_tokens=40, shared=shared, shareable_tokens=32)
        assert second.length == 16
        outputs.append(engine.forward([entries(second, rows[16:])]))
        first.close()
        second.close()
        pool.forget(shared)
    both.compare(outputs[0], outputs[1])


def test_a_rank_has_its_own_kv_heads_and_bytes_are_those_of_all(both: Both) -> None:
    assert both.two.kv_shape == both.one.kv_shape
    assert both.two_pool.num_blocks == both.one_pool.num_blocks
    assert both.two_pool.arena.shape[1] * 2 == both.one_pool.arena.shape[1]
    assert both.two.trouble() is None

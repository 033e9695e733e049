"""The packed, ragged back against transformers' whole model, for every tiny architecture."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import transformers

from cloud.attention.paged import PagedAttention
from cloud.attention.registry import BACKENDS
from cloud.engine.back_engine import BackEngine
from cloud.engine.back_weights import load_back
from cloud.engine.batch_entry import BatchEntry
from cloud.kv.pool import KvLease, KvPool
from tests.cloud.tiny_bundle import save_back
from tests.tiny_models import BACK_FAMILIES, VOCAB, make_tiny_model

CPU = torch.device("cpu")
NUM_TOKENS = 40  # three times the tiny models' sliding window


class Tiny:
    """A tiny model, its back engine from layer 0 on, and what the whole model answers."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.model = make_tiny_model(name, folder)
        save_back(self.model, folder / "cloud")
        self.engine = BackEngine(load_back(folder / "cloud", first_layer=0))
        self.num_layers = self.engine.num_layers
        self.pool = KvPool(self.engine.kv_shape, limit_bytes=1 << 30)

    def reference(self, ids: list[int]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The hidden states entering each layer [L + 1][T, D] and the logits [T, V]."""
        entering: list[torch.Tensor] = []
        layers = self.model.model.layers
        hooks = [
            layer.register_forward_pre_hook(
                lambda _m, args, kwargs: entering.append(
                    (args[0] if args else kwargs["hidden_states"])[0].clone()
                ),
                with_kwargs=True,
            )
            for layer in layers
        ]
        after = layers[-1].register_forward_hook(
            lambda _m, _a, out: entering.append(
                (out[0] if isinstance(out, tuple) else out)[0].clone()
            )
        )
        with torch.inference_mode():
            logits = self.model(torch.tensor([ids]), use_cache=False).logits[0]
        for hook in (*hooks, after):
            hook.remove()
        return entering, logits


FUSED = ("llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3",
         "seed_oss")  # fmt: skip


@pytest.fixture(scope="module", params=BACK_FAMILIES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    transformers.logging.disable_progress_bar()
    return Tiny(request.param, tmp_path_factory.mktemp(request.param))


def random_ids(seed: int, count: int = NUM_TOKENS) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=count)


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape
    error = (got - expected).norm() / expected.norm()
    assert error < 1e-4, f"relative error {error:.2e}"


def run(tiny: Tiny, split: int, rows: torch.Tensor, cuts: list[int]) -> torch.Tensor:
    """Feed `rows` in chunks that end at `cuts`, all logits wanted; returns [T, V]."""
    with tiny.pool.lease(split=split, max_tokens=len(rows)) as lease:
        logits = []
        for begin, end in zip([0, *cuts], [*cuts, len(rows)], strict=True):
            entry = BatchEntry(lease=lease, rows=rows[begin:end], num_logits=end - begin)
            logits += tiny.engine.forward([entry])
        assert lease.length == len(rows)
        return torch.cat(logits)


def test_whole_prefill_equals_the_whole_model_at_every_split(tiny: Tiny) -> None:
    entering, expected = tiny.reference(random_ids(1))
    for split in range(tiny.num_layers + 1):
        assert_close(run(tiny, split, entering[split], []), expected)


def test_every_layer_takes_the_short_way_and_the_long_way_is_right_too(tiny: Tiny) -> None:
    """Layers of another shape than Llama's run as they are: SmolLM3's without positions, too."""
    # SmolLM3 has two layers with positions, the tiny Qwen3 MoE one without experts.
    some = {"smollm3": 2, "qwen3_moe": 1}
    fused = some.get(tiny.name, tiny.num_layers * (tiny.name in FUSED))
    assert tiny.engine.num_fused_layers == fused
    plain = BackEngine(tiny.engine.model, fused=False)
    assert plain.num_fused_layers == 0
    entering, expected = tiny.reference(random_ids(1))
    with tiny.pool.lease(split=1, max_tokens=NUM_TOKENS) as lease:
        parts = []
        for begin, end in ((0, 30), (30, 31), (31, NUM_TOKENS)):
            entry = BatchEntry(lease=lease, rows=entering[1][begin:end], num_logits=end - begin)
            parts += plain.forward([entry])
    assert_close(torch.cat(parts), expected)


@pytest.mark.parametrize("cuts", [[16, 32], list(range(1, NUM_TOKENS)), [5, 6, 7, 15, 16, 24]])
def test_chunks_single_steps_and_multi_row_steps_equal_one_pass(
    tiny: Tiny, cuts: list[int]
) -> None:
    entering, expected = tiny.reference(random_ids(2))
    for split in range(tiny.num_layers):
        assert_close(run(tiny, split, entering[split], cuts), expected)


def test_after_a_rollback_the_right_rows_count(tiny: Tiny) -> None:
    right, wrong = random_ids(3), random_ids(4)
    entering, expected = tiny.reference(right)
    spoiled, _ = tiny.reference(right[:20] + wrong[20:])
    for split in range(tiny.num_layers):
        with tiny.pool.lease(split=split, max_tokens=NUM_TOKENS) as lease:
            spoilt = BatchEntry(lease=lease, rows=spoiled[split][:30], num_logits=0)
            tiny.engine.forward([spoilt])
            lease.rollback(20)
            rest = BatchEntry(lease=lease, rows=entering[split][20:], num_logits=20)
            (logits,) = tiny.engine.forward([rest])
        assert_close(logits, expected[20:])


def test_sessions_of_every_split_and_length_share_a_batch_and_answer_as_alone(tiny: Tiny) -> None:
    generator = random.Random(5)
    sessions = []
    for index in range(2 * tiny.num_layers):
        split = index % tiny.num_layers
        entering, expected = tiny.reference(random_ids(10 + index))
        lease = tiny.pool.lease(split=split, max_tokens=NUM_TOKENS)
        sessions.append((lease, entering[split], expected))
    seen = [0] * len(sessions)
    while any(count < NUM_TOKENS for count in seen):
        batch, picked = [], []
        for index, (lease, rows, _) in enumerate(sessions):
            left = NUM_TOKENS - seen[index]
            take = min(left, generator.choice([0, 1, 1, 3, 9]))
            if take:
                count = generator.randint(0, take)
                part = rows[seen[index] : seen[index] + take]
                batch.append(BatchEntry(lease=lease, rows=part, num_logits=count))
                picked.append((index, take, count))
        if not batch:
            continue
        generator.shuffle(order := list(range(len(batch))))
        outputs = tiny.engine.forward([batch[i] for i in order])
        for logits, (index, take, count) in zip(outputs, [picked[i] for i in order], strict=True):
            seen[index] += take
            if count:
                assert_close(logits, sessions[index][2][seen[index] - count : seen[index]])
    for lease, _, _ in sessions:
        lease.close()
    assert tiny.pool.used_bytes == 0


def cut_into_extents(tiny: Tiny, split: int) -> KvLease:
    """A lease whose positions lie in three extents, the first one shared."""
    owner = tiny.pool.lease(split=split, max_tokens=16, shareable_tokens=16)
    shared = tiny.pool.share(owner, 16)
    lease = tiny.pool.lease(split=split, max_tokens=NUM_TOKENS, shared=shared, shareable_tokens=32)
    owner.close()
    tiny.pool.forget(shared)
    assert len(lease.segments) == 3
    lease.length = lease.num_frozen = 0
    return lease


# Paged attention has tests of its own: Triton's interpreter takes seconds for a few rows.
@pytest.mark.parametrize(
    "attention",
    [name for name in BACKENDS if BACKENDS[name].runs_on(CPU) and name != PagedAttention.name],
)
def test_where_the_blocks_lie_changes_nothing(tiny: Tiny, attention: str) -> None:
    engine = BackEngine(tiny.engine.model, attention=attention)
    for split in (0, tiny.num_layers - 1):
        whole = tiny.pool.lease(split=split, max_tokens=NUM_TOKENS)
        scattered = cut_into_extents(tiny, split)
        entering, expected = tiny.reference(random_ids(6))
        for begin, end in ((0, 20), *((at, at + 1) for at in range(20, NUM_TOKENS))):
            batch = [
                BatchEntry(lease=lease, rows=entering[split][begin:end], num_logits=end - begin)
                for lease in (whole, scattered)
            ]
            for logits in engine.forward(batch):
                assert_close(logits, expected[begin:end])
        whole.close()
        scattered.close()
    assert tiny.pool.used_bytes == 0

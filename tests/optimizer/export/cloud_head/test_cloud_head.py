"""The cloud's head: what is trained is what the server runs, and a run that stops goes on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from cloud.attention.packed_step import PackedStep, StepEntry
from cloud.attention.registry import backend_for
from cloud.drafting.eagle_head import EagleHead
from cloud.drafting.head_spec import HeadWeights, read_head
from cloud.kv.pool import KvPool, KvShape
from optimizer.artifacts.bundle import DRAFT_HEAD_FOLDER, open_bundle
from optimizer.errors import BuildError
from optimizer.export.cloud_head.cloud_head_builder import (
    CloudHeadOptions,
    build_cloud_head,
)
from optimizer.export.cloud_head.corpus import PassageRef, open_passages, write_passages
from optimizer.export.cloud_head.head import CloudHead, HeadSizes
from optimizer.export.cloud_head.least_squares import begin_linear
from optimizer.export.cloud_head.training import (
    CloudTrainOptions,
    score_depths,
    train_cloud_head,
)
from optimizer.export.draft_head.text import Passage
from tests.conftest import ModelBench

WIDTH, VOCAB, KNOWN = 32, 96, 48
SIZES = HeadSizes(
    hidden_size=WIDTH, inner=48, num_heads=4, num_kv_heads=2, head_dim=8, vocab_size=KNOWN
)
OPTIONS = CloudTrainOptions(epochs=3, batch=4, lr=3e-3)


def rotary() -> Any:
    config = LlamaConfig(hidden_size=WIDTH, num_attention_heads=4, head_dim=8)
    return LlamaRotaryEmbedding(config)


class Toy:
    """A language in which the state of a position is a function of the last two tokens."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randn(VOCAB, WIDTH, generator=generator)
        self.tokens = torch.arange(0, VOCAB, 2)
        self.embedding = torch.randn(KNOWN, WIDTH, generator=generator)

    def embed(self, token_ids: Tensor) -> Tensor:
        return self.table[token_ids]

    def head(self, seed: int = 1) -> CloudHead:
        torch.manual_seed(seed)
        head = CloudHead(SIZES, tokens=self.tokens, embedding=self.embedding, rotary=rotary())
        for name, one in head.named_parameters():
            if "norm" not in name:
                torch.nn.init.normal_(one, std=0.15)
        return head

    def passages(self, folder: Path, count: int, seed: int) -> list[PassageRef]:
        """Every token follows from the one before it, and the state says which comes next."""
        rng = np.random.default_rng(seed)
        made = []
        for _ in range(count):
            ids = [int(rng.integers(0, KNOWN)) * 2]
            for _ in range(int(rng.integers(8, 14))):
                ids.append((ids[-1] * 6 + 10) % VOCAB)
            states = np.stack([6.0 * self.embedding[token // 2].numpy() for token in ids[1:]])
            made.append(Passage(token_ids=np.array(ids), states=states.astype(np.float16)))
        write_passages(folder, made)
        found = open_passages(folder, WIDTH)
        assert found is not None
        return found


def test_the_server_runs_the_head_that_was_trained(
    tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built for a bundle and read back: the same states, pass by pass, as in training."""
    monkeypatch.setattr("optimizer.export.cloud_head.corpus.ROWS_PER_SHARD", 8)
    monkeypatch.setattr("optimizer.export.cloud_head.corpus.WINDOW", 160)
    bench: ModelBench = tiny("llama")
    facts, folder = built(bench, tmp_path)
    weights = read_head(folder, hidden_size=64, vocab_size=320, num_layers=4)
    assert isinstance(weights, HeadWeights)
    assert weights.spec.vocab_size == facts["vocabulary"]
    has_kinds = any((tmp_path / "work").glob("passages-*/*-held-out"))
    assert facts["held_out"] == ("kinds" if has_kinds else "passages")
    state = torch.load(next((tmp_path / "work").glob("checkpoint-*.pt")), weights_only=True)["best"]
    sizes = HeadSizes(**facts["sizes"])
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=sizes.num_heads, head_dim=sizes.head_dim
    )
    head = CloudHead(
        sizes,
        tokens=state["tokens"],
        embedding=state["embedding"],
        rotary=LlamaRotaryEmbedding(config),
    )
    head.load_state_dict(state)
    table = bench.source.read("model.embed_tokens.weight").float()
    served = EagleHead(
        weights, embed=lambda ids: table[list(ids)], logits=lambda own: own, quantize=False
    )
    tokens = [5, 9, 70, 200, 33, 21, 18]
    states = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = head.passes(states, table[torch.tensor([tokens])], 3)
    shape = KvShape(num_layers=1, num_kv_heads=sizes.num_kv_heads, head_dim=sizes.head_dim)
    pool = KvPool(shape, limit_bytes=shape.num_bytes(split=0, max_tokens=64))
    lease = pool.lease(split=0, max_tokens=32)

    def run(states: Tensor, token_ids: list[int]) -> Tensor:
        entry = StepEntry(lease, start=lease.length, begin=0, num_rows=len(token_ids))
        attend = backend_for(torch.device("cpu"))(PackedStep([entry])).over([entry])
        out = served.run(states, token_ids, range(entry.start, entry.stop), attend)
        lease.length = entry.stop
        return out

    with torch.inference_mode():
        own = run(states[0], tokens[:5])
        torch.testing.assert_close(own, expected[0][0], atol=1e-4, rtol=1e-3)
        for step in (1, 2):
            own = run(own[-1:], [tokens[4 + step]])
            torch.testing.assert_close(own[0], expected[step][0, -1], atol=1e-4, rtol=1e-3)


def built(bench: ModelBench, root: Path) -> tuple[dict[str, Any], Path]:
    bundle = bench.cloud_bundle()
    copy = root / "bundle"
    shutil.copytree(bundle, copy)
    options = CloudHeadOptions(
        num_tokens=1024, vocabulary=64, training=CloudTrainOptions(epochs=1, batch=4)
    )
    facts = build_cloud_head(
        bench.source,
        open_bundle(copy, role="cloud"),
        work=root / "work",
        options=options,
        progress=lambda *_: None,
    )
    assert open_bundle(copy, role="cloud").has(f"{DRAFT_HEAD_FOLDER}/model.safetensors")
    return facts, copy / DRAFT_HEAD_FOLDER


def test_training_begins_at_the_best_linear_map_however_small_the_embeddings_are(
    tmp_path: Path,
) -> None:
    toy = Toy()
    toy.table = toy.table / 30.0
    generator = torch.Generator().manual_seed(4)
    of_token = torch.randn(WIDTH, WIDTH, generator=generator) * 30.0 * WIDTH**-0.5
    of_state = torch.randn(WIDTH, WIDTH, generator=generator) * 0.4 * WIDTH**-0.5
    made = []
    for _ in range(60):
        ids = torch.randint(0, VOCAB, (21,), generator=generator)
        steps = [torch.randn(WIDTH, generator=generator)]
        for token in ids[1:20]:
            steps.append(of_token @ toy.table[token] + of_state @ steps[-1])
        rows = torch.stack(steps).numpy().astype(np.float16)
        made.append(Passage(token_ids=ids.numpy(), states=rows))
    write_passages(tmp_path / "shard", made)
    passages = open_passages(tmp_path / "shard", WIDTH)
    assert passages is not None
    head = toy.head()
    begin_linear(head, passages[:50], toy.embed)
    with torch.no_grad():
        for one in passages[50:]:
            states = torch.from_numpy(one.states[:]).float()
            embedded = toy.embed(torch.from_numpy(one.token_ids[1:]))
            (own,) = head.passes(states[None, :-1], embedded[None], 1)
            assert float((own[0] - states[1:]).norm() / states[1:].norm()) < 0.02


def test_training_learns_to_guess_several_tokens_ahead(tmp_path: Path) -> None:
    toy = Toy()
    train_on, held_out = toy.passages(tmp_path / "a", 30, 1), toy.passages(tmp_path / "b", 8, 2)
    head = toy.head()
    before = score_depths(head, held_out, toy.embed, OPTIONS)
    best, scores = train_cloud_head(
        head,
        train_on,
        held_out,
        toy.embed,
        CloudTrainOptions(epochs=10, batch=4, lr=3e-3),
        checkpoint=tmp_path / "checkpoint.pt",
        progress=lambda *_: None,
    )
    assert before.tokens_a_round < 1.5
    assert best.tokens_a_round > 2.5
    assert len(scores) == 10
    assert score_depths(head, held_out, toy.embed, OPTIONS).by_depth == best.by_depth


def test_a_run_that_stops_goes_on_to_the_same_head(tmp_path: Path) -> None:
    toy = Toy()
    train_on, held_out = toy.passages(tmp_path / "a", 12, 1), toy.passages(tmp_path / "b", 4, 2)

    def run(name: str, stop_after: int | None) -> CloudHead:
        head = toy.head()

        def progress(stage: str, done: int, total: int) -> None:
            if stop_after is not None and done > stop_after:
                raise KeyboardInterrupt

        train_cloud_head(
            head,
            train_on,
            held_out,
            toy.embed,
            OPTIONS,
            checkpoint=tmp_path / f"{name}.pt",
            progress=progress,
        )
        return head

    whole = run("whole", None)
    with pytest.raises(KeyboardInterrupt):
        run("parts", 4)  # in the second epoch of three steps
    again = run("parts", None)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_scores_count_what_came_and_not_what_is_beyond_the_passage(tmp_path: Path) -> None:
    toy = Toy()
    ids = np.array([0, 2, 4, 6])
    states = np.zeros((3, WIDTH), dtype=np.float16)
    write_passages(tmp_path / "one", [Passage(token_ids=ids, states=states)])
    passages = open_passages(tmp_path / "one", WIDTH)
    assert passages is not None
    score = score_depths(toy.head(), passages, toy.embed, OPTIONS)
    # Three states: index 0 guesses token 2, index 1 token 3; index 2 has nothing to guess.
    assert score.num_positions == 2


def test_a_damaged_shard_counts_as_none(tmp_path: Path) -> None:
    toy = Toy()
    toy.passages(tmp_path / "a-held-out", 3, 1)
    found = open_passages(tmp_path / "a-held-out", WIDTH)
    assert found is not None
    assert all(one.is_held_out and len(one.states) == len(one.token_ids) - 1 for one in found)
    path = tmp_path / "a-held-out" / "states.f16"
    path.write_bytes(path.read_bytes()[:-2])
    assert open_passages(tmp_path / "a-held-out", WIDTH) is None
    assert open_passages(tmp_path / "missing", WIDTH) is None


def test_a_corpus_with_nothing_to_hold_out_is_refused(tmp_path: Path) -> None:
    toy = Toy()
    with pytest.raises(BuildError, match="too small"):
        train_cloud_head(
            toy.head(),
            [],
            [],
            toy.embed,
            OPTIONS,
            checkpoint=tmp_path / "x.pt",
            progress=lambda *_: None,
        )


def test_a_head_is_trained_for_the_bundles_model_alone(tmp_path: Path, tiny: Any) -> None:
    other: ModelBench = tiny("qwen2")
    bench: ModelBench = tiny("llama")
    with pytest.raises(BuildError, match="the bundle is of model"):
        build_cloud_head(
            other.source,
            open_bundle(bench.cloud_bundle(), role="cloud"),
            work=tmp_path,
            options=CloudHeadOptions(),
            progress=lambda *_: None,
        )

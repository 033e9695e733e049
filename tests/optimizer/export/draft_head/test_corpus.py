"""The smallest corpus that can be asked for is made, and some of it is held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optimizer.errors import BuildError
from optimizer.export.draft_head.corpus import (
    CHATS_PER_SHARD,
    _chat_shards,
    held_out_step,
    make_corpus,
)
from optimizer.export.draft_head.shards import WINDOW, Shard, split_shard
from optimizer.export.draft_head.stored_rows import RowRange, StoredRows
from optimizer.export.draft_head.text import Passage
from optimizer.export.layers.layered_model import LayeredModel
from optimizer.export.sources.model_source import open_source
from tests.tiny_models import make_tiny_model


def shard_of(count: int) -> Shard:
    rows = StoredRows([RowRange(path=Path("never-read"), begin=0, count=count)], 2)
    return Shard(token_ids=np.zeros(count, dtype=np.int64), rows=rows, states=rows)


def planned(num_tokens: int) -> list[tuple[str, int]]:
    """Name and number of chats of each shard."""

    def write(*, count: int, seed: int) -> list[Passage]:
        counts.append(count)
        return []

    counts: list[int] = []
    names = []
    for name, make in _chat_shards(write, num_tokens, WINDOW):
        names.append(name)
        make()
    return list(zip(names, counts, strict=True))


@pytest.mark.parametrize(("num_tokens", "chats"), [(4096, 23), (2048, 12), (1, 1), (0, 0)])
def test_less_than_half_a_shard_is_a_small_shard_of_its_own_name(
    num_tokens: int, chats: int
) -> None:
    assert planned(num_tokens) == ([(f"chat-of-{chats}", chats)] if chats else [])


def test_larger_corpora_are_the_last_versions() -> None:
    assert planned(65536) == [(f"chat-{index:03d}", CHATS_PER_SHARD) for index in range(6)]
    assert planned(8192) == [("chat-000", CHATS_PER_SHARD)]


@pytest.mark.parametrize(
    ("runs", "step"), [((100,), 12), ((12, 3), 12), ((11,), 11), ((2, 1), 2), ((3,) * 9, 3)]
)
def test_something_is_held_out_of_every_corpus_of_two_runs(
    runs: tuple[int, ...], step: int
) -> None:
    shards = [shard_of(count * WINDOW) for count in runs]
    assert held_out_step(shards, 12) == step
    held_out = [out for shard in shards for _, out in split_shard(shard, step)]
    assert 0 < sum(held_out) < len(held_out)


@pytest.mark.parametrize("sizes", [(), (0,), (WINDOW,), (WINDOW, WINDOW)])
def test_a_corpus_of_single_runs_is_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(BuildError, match=r"too small to hold anything out.*more tokens"):
        held_out_step([shard_of(size) for size in sizes], 12)


def test_a_corpus_that_is_only_read_tells_its_share(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path / "model")
    source = open_source(tmp_path / "model")
    told: list[tuple[str, int, int]] = []
    layered = LayeredModel(source, folder=tmp_path, keep=False)
    shards = make_corpus(
        tmp_path / "corpus",
        model=layered,
        tokenizer=source.load_tokenizer(),
        front=lambda ids: np.zeros((len(ids), layered.hidden_size), dtype=np.float32),
        num_tokens=600,
        text_ids=np.arange(600) % layered.vocab_size,
        progress=lambda *step: told.append(step),
    )
    assert sum(len(shard.token_ids) for shard in shards) == 512
    shares = [done / total for what, done, total in told if what == "writing the corpus"]
    assert shares[0] == 0
    assert shares[-1] == 1
    assert any(0 < share < 1 for share in shares)

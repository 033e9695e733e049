"""A shard on disk: whole or not there, read a batch at a time, and trained on like an array."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from codec.arrays import F32, I64
from optimizer.export.draft_head.head import DraftHead, HeadShape
from optimizer.export.draft_head.shards import (
    IDS_NAME,
    ROWS_NAME,
    STATES_NAME,
    Shard,
    open_shard,
    split_shard,
    write_shard,
)
from optimizer.export.draft_head.stored_rows import HalfRows, joined
from optimizer.export.draft_head.text import Passage
from optimizer.export.draft_head.training import (
    Positions,
    TrainOptions,
    likeliest_tokens,
    train,
)

WIDTH, VOCAB = 64, 80
MIB = 1 << 20


def front(token_ids: I64) -> F32:
    """Rows that tell tokens and places apart."""
    places = np.arange(len(token_ids), dtype=np.float32)[:, None]
    return np.sin(token_ids[:, None] * np.arange(1, WIDTH + 1) + places).astype(np.float32)


def passages(*lengths: int, seed: int = 0) -> Iterator[Passage]:
    draw = np.random.default_rng(seed)
    for length in lengths:
        ids = draw.integers(0, VOCAB, length)
        states = draw.normal(size=(max(length - 1, 0), WIDTH)).astype(np.float16)
        yield Passage(token_ids=ids, states=states)


def shard_at(folder: Path, *lengths: int, seed: int = 0) -> Shard:
    write_shard(folder, passages(*lengths, seed=seed), front)
    shard = open_shard(folder, WIDTH)
    assert shard is not None
    return shard


def test_a_shard_gives_back_its_passages_without_their_last_tokens(tmp_path: Path) -> None:
    shard = shard_at(tmp_path / "a", 40, 1, 0, 300)
    kept = [one for one in passages(40, 1, 0, 300) if len(one.token_ids) > 1]
    assert shard.rows.shape == shard.states.shape == (338, WIDTH)
    for of_shard, of_passages in (
        (shard.token_ids, [one.token_ids[:-1] for one in kept]),
        (shard.rows[:], [front(one.token_ids[:-1]).astype(np.float16) for one in kept]),
        (shard.states[:], [one.states for one in kept]),
    ):
        np.testing.assert_array_equal(of_shard, np.concatenate(of_passages))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_rows_are_clipped_to_what_16_bits_hold(tmp_path: Path) -> None:
    write_shard(tmp_path / "a", passages(9), lambda ids: 1e6 * front(ids))
    shard = open_shard(tmp_path / "a", WIDTH)
    assert shard is not None
    assert np.isfinite(shard.rows[:]).all()
    assert np.abs(shard.rows[:]).max() == 6e4


@pytest.mark.parametrize("seed", range(3))
def test_stored_rows_are_indexed_like_an_array(tmp_path: Path, seed: int) -> None:
    shards = [shard_at(tmp_path / name, 300, 500, seed=at) for at, name in enumerate("abc")]
    pieces = [
        piece for shard in shards for piece, held_out in split_shard(shard, 3) if not held_out
    ]
    rows = joined([piece.rows for piece in pieces])
    array = np.concatenate([piece.rows[:] for piece in pieces])
    draw = np.random.default_rng(seed)
    begin, end = np.sort(draw.integers(0, len(array), 2))
    for which in (
        slice(None),
        slice(begin, end),
        slice(end, end),
        slice(len(array) - 5, len(array) + 5),
        draw.integers(0, len(array), 200),  # in any order, with repetitions
        np.sort(draw.permutation(len(array))[:200]),
        np.zeros(0, dtype=np.int64),
    ):
        np.testing.assert_array_equal(rows[which], array[which])
    np.testing.assert_array_equal(rows.between(begin, end)[:], array[begin:end])
    assert len(rows.between(end, end)) == 0


def test_a_row_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    rows = shard_at(tmp_path / "a", 40).rows
    for beyond in (39, -1):
        with pytest.raises(IndexError, match="beyond the 39"):
            rows[np.array([0, beyond])]
    with (tmp_path / "a" / ROWS_NAME).open("r+b") as file:
        file.truncate(100)
    with pytest.raises(OSError, match=r"rows\.f16 ends before"):
        rows[:]


@pytest.mark.parametrize("name", [IDS_NAME, ROWS_NAME, STATES_NAME])
def test_a_damaged_shard_counts_as_none_and_is_made_anew(tmp_path: Path, name: str) -> None:
    shard_at(tmp_path / "a", 40)
    with (tmp_path / "a" / name).open("r+b") as file:
        file.truncate(100)
    assert open_shard(tmp_path / "a", WIDTH) is None
    assert len(shard_at(tmp_path / "a", 40).rows[:]) == 39
    (tmp_path / "a" / name).unlink()
    assert open_shard(tmp_path / "a", WIDTH) is None
    assert open_shard(tmp_path / "other", WIDTH) is None


def test_a_shard_that_broke_off_is_not_there(tmp_path: Path) -> None:
    def broken(token_ids: I64) -> F32:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "a", passages(40), broken)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_of_an_earlier_version_is_replaced(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", token_ids=np.zeros(3, dtype=np.int64))
    assert open_shard(tmp_path / "a", WIDTH) is None
    shard_at(tmp_path / "a", 40)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def trained(rows: HalfRows, states: HalfRows, checkpoint: Path, batch: int = 128) -> DraftHead:
    embedding = torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(1))
    positions = Positions(rows=rows, states=states, best=likeliest_tokens(states, embedding))
    torch.manual_seed(0)
    shape = HeadShape(hidden_size=WIDTH, vocab_size=VOCAB, num_blocks=1, inner=32)
    head = DraftHead(shape, tokens=torch.arange(VOCAB), embedding=embedding)
    train(
        head,
        positions,
        positions,
        TrainOptions(epochs=1, batch=batch),
        checkpoint=checkpoint,
        progress=lambda stage, done, total: None,
    )
    return head


def test_training_from_shards_equals_training_from_arrays(tmp_path: Path) -> None:
    shards = [shard_at(tmp_path / name, 300, 200, seed=at) for at, name in enumerate("ab")]
    rows = joined([shard.rows for shard in shards])
    states = joined([shard.states for shard in shards])
    from_shards = trained(rows, states, tmp_path / "shards.pt")
    from_arrays = trained(rows[:], states[:], tmp_path / "arrays.pt")
    for name, value in from_arrays.state_dict().items():
        assert torch.equal(from_shards.state_dict()[name], value), name


def test_neither_writing_nor_training_holds_the_corpus(tmp_path: Path) -> None:
    """numpy tells tracemalloc of its arrays, and the corpus goes through numpy."""
    count, length = 128, 257
    shard_bytes = 2 * 2 * WIDTH * count * (length - 1)
    assert shard_bytes == 8 * MIB
    small = np.ones((64, WIDTH), dtype=np.float16)
    trained(small, small, tmp_path / "small.pt")  # torch imports parts of itself when it trains
    tracemalloc.start()
    try:
        shard = shard_at(tmp_path / "a", *[length] * count)
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        trained(shard.rows, shard.states, tmp_path / "a.pt", batch=1024)
        of_training = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        held = shard.rows[:], shard.states[:]
        of_arrays = tracemalloc.get_traced_memory()[1]
        del held
    finally:
        tracemalloc.stop()
    assert written < 2 * MIB  # the ids, and one passage
    assert of_training < 4 * MIB  # the ids, an order of them, and one batch
    assert of_arrays > shard_bytes  # what this measures, it sees

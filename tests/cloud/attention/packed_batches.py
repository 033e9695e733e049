"""Random packed batches over a KV pool, and their attention written out one row at a time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cloud.attention.base import AttentionTraits
from cloud.attention.packed_step import PackedStep, StepEntry
from cloud.kv.pool import KvLease, KvPool, KvShape

NUM_LAYERS = 3
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """H query heads over KV key-value heads of d channels."""

    query: int = 4
    kv: int = 2
    dim: int = 16


class PackedBatch:
    """Sessions of random splits, lengths and block tables, with a step of new rows of each.

    `history[i]` has session i's keys and values of every layer by position, [L, S, 2 KV, d].
    """

    def __init__(self, seed: int, heads: Heads, num_rows: Sequence[int]) -> None:
        self.heads = heads
        self._generator = torch.Generator().manual_seed(seed)
        pick = random.Random(seed)
        shape = KvShape(num_layers=NUM_LAYERS, num_kv_heads=heads.kv, head_dim=heads.dim)
        self.pool = KvPool(shape, limit_bytes=1 << 26)
        self.pool.arena.fill_(float("nan"))  # what no session wrote must not count
        splits = sorted(pick.randrange(NUM_LAYERS) for _ in num_rows)
        entries, self.history = [], []
        begin = 0
        for split, count in zip(splits, num_rows, strict=True):
            past = pick.randrange(40)
            lease = self._lease(split, past + count, scattered=pick.random() < 0.5)
            self.history.append(self._written(lease, past + count, num_stored=past))
            entries.append(StepEntry(lease, start=past, begin=begin, num_rows=count))
            begin += count
        self.num_rows = begin
        self.step = PackedStep(entries)
        self.query = self.random(begin, heads.query, heads.dim)

    def random(self, *shape: int) -> Tensor:
        """Standard normal numbers, float32."""
        return torch.randn(*shape, generator=self._generator)

    def active(self, layer: int) -> Sequence[StepEntry]:
        """The entries that have reached `layer`."""
        return [entry for entry in self.step.entries if entry.lease.split <= layer]

    def new_keys_values(self, layer: int) -> Tensor:
        """Keys and values of the active rows, [n, 2 KV, d]."""
        return torch.cat(
            [
                of_session[layer, entry.start :]
                for entry, of_session in zip(self.step.entries, self.history, strict=True)
                if entry.lease.split <= layer
            ]
        )

    def expected(self, layer: int, traits: AttentionTraits) -> Tensor:
        """The attention of the active rows in float64, row by row and head by head: [n, H, d]."""
        group = self.heads.query // self.heads.kv
        out = []
        for entry, of_session in zip(self.active(layer), self.history, strict=False):
            for offset in range(entry.num_rows):
                stop = entry.start + offset + 1
                seen = of_session[layer, max(0, stop - (traits.window or stop)) : stop].double()
                row = self.query[entry.begin + offset].double()
                for head in range(self.heads.query):
                    keys, values = seen[:, head // group], seen[:, self.heads.kv + head // group]
                    scores = traits.scale * (keys @ row[head])
                    if traits.cap is not None:
                        scores = traits.cap * torch.tanh(scores / traits.cap)
                    total = torch.exp(scores).sum()
                    if traits.sinks is not None:  # a score that belongs to no token
                        total = total + torch.exp(traits.sinks[head].double())
                    weights = torch.exp(scores) / total
                    out.append(weights @ values)
        return torch.stack(out).view(-1, self.heads.query, self.heads.dim)

    def _lease(self, split: int, num_tokens: int, *, scattered: bool) -> KvLease:
        """A lease; `scattered`: over two or three extents, the first one another session's."""
        if not scattered or num_tokens <= 16:
            return self.pool.lease(split=split, max_tokens=num_tokens)
        owner = self.pool.lease(split=split, max_tokens=16, shareable_tokens=16)
        return self.pool.lease(
            split=split,
            max_tokens=num_tokens,
            shared=self.pool.share(owner, 16),
            shareable_tokens=32,
        )

    def _written(self, lease: KvLease, num_tokens: int, *, num_stored: int) -> Tensor:
        """Random keys and values of all positions; the first `num_stored` go to the arena."""
        history = self.random(NUM_LAYERS, num_tokens, 2 * self.heads.kv, self.heads.dim)
        for layer in range(lease.split, NUM_LAYERS):
            position = 0
            for row, stride, count in lease.spans(0, num_stored):
                first = row + (layer - lease.split) * stride
                self.pool.arena[first : first + count] = history[layer, position : position + count]
                position += count
        return history


def relative_error(got: Tensor, expected: Tensor) -> float:
    """The length of the difference over the length of what is expected."""
    assert got.shape == expected.shape
    return float((got.double() - expected).norm() / expected.norm())

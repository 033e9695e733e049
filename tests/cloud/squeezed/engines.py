"""A small seeded model with room for several segments, and a session of random rows on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from cloud.engine.back_engine import BackEngine
from cloud.engine.back_weights import load_back
from cloud.engine.batch_entry import BatchEntry
from cloud.kv.pool import KvLease, KvPool, SharedPrefix
from cloud.squeezed.fixed_context import FixedContext, Indexing, Squeezing
from tests.cloud.tiny_bundle import quantized_back, save_back

WIDTH = 96
PROMPT, ROWS = 1200, 1230  # two segments of 512 are fixed
ALL_ROWS = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(7))


def make_engine(folder: Path, *, int8: bool) -> BackEngine:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=40,
        max_position_embeddings=2048,
        initializer_range=0.2,
    )
    save_back(LlamaForCausalLM(config), folder)
    if int8:
        quantized_back(folder)
    return BackEngine(load_back(folder, first_layer=0))


class SqueezedSession:
    """A session that enters at layer 0; its first PROMPT rows may be shared."""

    def __init__(
        self,
        engine: BackEngine,
        pool: KvPool,
        squeezing: Squeezing | None,
        *,
        prompt: int = PROMPT,
        shared: SharedPrefix | None = None,
        held: Sequence[Indexing] = (),
    ) -> None:
        self.engine = engine
        self.lease: KvLease = pool.lease(
            split=0, max_tokens=ROWS, shared=shared, shareable_tokens=prompt
        )
        self.context: FixedContext | None = None
        if squeezing is not None:
            self.context = squeezing.begin(split=0, shareable_tokens=prompt, held=held)

    def entry(self, num_rows: int) -> BatchEntry:
        """The next rows, as many of them as one batch may take; all of them want logits."""
        at = self.lease.length
        if self.context is not None:
            num_rows = self.context.most_rows(at, num_rows)
        rows = ALL_ROWS[at : at + num_rows]
        return BatchEntry(lease=self.lease, rows=rows, num_logits=num_rows, context=self.context)

    def run(self, *counts: int) -> Tensor:
        """Frames of so many rows. Returns their logits."""
        logits = []
        for count in counts:
            end = self.lease.length + count
            while self.lease.length < end:
                logits += self.engine.forward([self.entry(end - self.lease.length)])
        return torch.cat(logits)


def make_pool(engine: BackEngine) -> KvPool:
    return KvPool(engine.kv_shape, limit_bytes=64 << 20)

"""Attention over gathered histories: the one-row entries of all sessions in one call.

For CUDA, where a kernel call a session would cost more than the work. A table of places in the
arena says where each history lies; the histories are gathered through it, padded to the longest
and masked. Entries of several rows (prefill, drafts) are enough work for a call of their own, so
they are read in place, and so are layers with soft caps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from cloud.attention.base import AttentionBackend, AttentionTraits
from cloud.attention.in_place import InPlaceAttention
from cloud.attention.packed_step import PackedStep, StepEntry


class GatheredAttention(AttentionBackend):
    """One call for all sessions that decode one token. It was tested on CPUs only."""

    name: ClassVar[str] = "gathered"

    def __init__(self, step: PackedStep) -> None:
        super().__init__(step)
        self._others = InPlaceAttention(step)
        self._tables: dict[int | None, _HistoryTables] = {}  # by window

    def attend(
        self, layer: int, entries: Sequence[StepEntry], query: Tensor, traits: AttentionTraits
    ) -> Tensor:
        """See AttentionBackend."""
        count = sum(entry.num_rows == 1 for entry in entries)
        if traits.cap is not None or traits.sinks is not None or count < 2:
            return self._others.attend(layer, entries, query, traits)
        tables = self._tables.get(traits.window)
        if tables is None:
            tables = self._tables[traits.window] = _HistoryTables(self.step, traits.window)
        rows = tables.rows[:count]
        out = torch.empty_like(query)
        out[rows] = tables.attend(layer, query[rows], traits.scale)
        for entry in entries:
            if entry.num_rows > 1:
                part = slice(entry.begin, entry.end)
                out[part] = self._others.attend_one(layer, entry, query[part], traits)
        return out


class _HistoryTables:
    """Where the histories of a step's one-row entries lie: [N, S], S the longest history.

    rows: int64 [N] the batch row of each of these entries.
    """

    def __init__(self, step: PackedStep, window: int | None) -> None:
        entries = [entry for entry in step.entries if entry.num_rows == 1]
        bases, strides, lengths = [], [], []
        for entry in entries:
            base: list[int] = []
            stride: list[int] = []
            for row, layer_stride, count in entry.lease.spans(entry.first(window), entry.stop):
                first = row - entry.lease.split * layer_stride
                base.extend(range(first, first + count))
                stride.extend([layer_stride] * count)
            bases.append(base)
            strides.append(stride)
            lengths.append(len(base))
        longest = max(lengths)
        # The padding repeats the last place: it exists, and the mask hides it.
        for base, stride in zip(bases, strides, strict=True):
            base.extend(base[-1:] * (longest - len(base)))
            stride.extend(stride[-1:] * (longest - len(stride)))
        self._arena = step.arena
        device = step.arena.device
        self.rows = torch.tensor([entry.begin for entry in entries], device=device)
        self._base = torch.tensor(bases, device=device)
        self._stride = torch.tensor(strides, device=device)
        ends = torch.tensor(lengths, device=device)
        self._seen = torch.arange(longest, device=device) < ends[:, None]

    def attend(self, layer: int, query: Tensor, scale: float) -> Tensor:
        """query: [n, H, d] of the first n one-row entries -> [n, H, d]."""
        count, num_heads, head_dim = query.shape
        places = torch.add(self._base[:count], self._stride[:count], alpha=layer)
        keys, values = self._arena[places].transpose(1, 2).chunk(2, dim=1)  # [n, KV, S, d]
        # The heads of one group share keys: they become that many query rows.
        grouped = query.reshape(count, keys.shape[1], num_heads // keys.shape[1], head_dim)
        mask = self._seen[:count, None, None]
        out = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
        return out.reshape(count, num_heads, head_dim)

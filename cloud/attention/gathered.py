"""Attention over gathered histories: one-row steps of all sessions in one call, by block table.

For CUDA, where a kernel call a session would cost more than the work: the histories are read
through a table of their places in the arena, padded to the longest and masked. Rows that come
several at a time (prefill, drafts) are enough work for a call of their own. Tested on CPUs,
where it gives the same numbers as reading in place; no CUDA device was at hand when this was
written, so there it never ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from cloud.kv.pool import KvLease


class OneRow(Protocol):
    """What is needed of a step's entry with one row (`cloud.attention.packed.StepEntry`)."""

    lease: KvLease
    begin: int

    @property
    def stop(self) -> int: ...

    def first(self, window: int | None) -> int: ...


class GatheredSteps:
    """Tables of all one-row entries of a step, [N, S], S the longest history. Made once a step."""

    def __init__(self, entries: Sequence[OneRow], window: int | None, device: torch.device) -> None:
        bases, strides, lengths = [], [], []
        for entry in entries:
            base: list[int] = []
            stride: list[int] = []
            for row, step, count in entry.lease.pieces(entry.first(window), entry.stop):
                first = row - entry.lease.split * step
                base.extend(range(first, first + count))
                stride.extend([step] * count)
            bases.append(base)
            strides.append(stride)
            lengths.append(len(base))
        longest = max(lengths)
        # The padding repeats the last place: always there, never seen.
        for base, stride in zip(bases, strides, strict=True):
            base.extend(base[-1:] * (longest - len(base)))
            stride.extend(stride[-1:] * (longest - len(stride)))
        self.rows = torch.tensor([entry.begin for entry in entries], device=device)
        self._base = torch.tensor(bases, device=device)
        self._stride = torch.tensor(strides, device=device)
        ends = torch.tensor(lengths, device=device)
        self._seen = torch.arange(longest, device=device) < ends[:, None]

    def attend(self, arena: Tensor, layer: int, query: Tensor, scale: float) -> Tensor:
        """query: [n, H, d] of the first n entries (those active at `layer`) -> [n, H, d]."""
        count, num_heads, head_dim = query.shape
        places = torch.add(self._base[:count], self._stride[:count], alpha=layer)
        keys, values = arena[places].transpose(1, 2).chunk(2, dim=1)  # [n, KV, S, d]
        # The heads of one group share keys: they become that many query rows.
        grouped = query.reshape(count, keys.shape[1], num_heads // keys.shape[1], head_dim)
        mask = self._seen[:count, None, None]
        out = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
        return out.reshape(count, num_heads, head_dim)

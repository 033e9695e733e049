"""One forward pass as attention sees it: which rows belong to which session, and where they go.

A packed batch holds the rows of several sessions one after the other, T rows in all. This module
knows the batch's layout. How attention is computed over it is the job of a backend
(`cloud.attention.base`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cloud.kv.pool import KvLease
from cloud.squeezed.fixed_context import FixedContext


class StepEntry:
    """Rows [begin, end) of the packed batch: one session's positions from `start` on.

    context: of the session, whose keys are selected from (`cloud.squeezed`); None: every row sees
    every key.
    """

    __slots__ = ("begin", "context", "end", "lease", "start")

    def __init__(
        self,
        lease: KvLease,
        *,
        start: int,
        begin: int,
        num_rows: int,
        context: FixedContext | None = None,
    ) -> None:
        self.lease = lease
        self.context = context
        self.start = start
        self.begin = begin
        self.end = begin + num_rows

    @property
    def num_rows(self) -> int:
        """How many rows the session has in this batch."""
        return self.end - self.begin

    @property
    def stop(self) -> int:
        """The position after the last row."""
        return self.start + self.end - self.begin

    def first(self, window: int | None) -> int:
        """The lowest position that any of the rows sees."""
        return 0 if window is None else max(0, self.start - window + 1)


class PackedStep:
    """The entries of one forward pass, ordered by split.

    Because of the order, the entries that have reached a layer are the first ones, and their
    rows are the first rows.
    """

    __slots__ = ("arena", "entries", "places", "strides")

    def __init__(self, entries: Sequence[StepEntry]) -> None:
        self.entries = entries
        self.arena = entries[0].lease.pool.arena  # [rows, 2 KV, d], keys before values
        rows: list[int] = []
        strides: list[int] = []
        for entry in entries:
            for row, stride, count in entry.lease.spans(entry.start, entry.stop):
                base = row - entry.lease.split * stride
                rows.extend(range(base, base + count))
                strides.extend([stride] * count)
        device = self.arena.device
        # int64 [T] each: row t of layer l goes to arena row places[t] + l * strides[t].
        self.places = torch.tensor(rows, device=device)
        self.strides = torch.tensor(strides, device=device)

    def store(self, layer: int, keys_values: Tensor) -> None:
        """Write the keys and values of the first n rows at `layer`, [n, 2 KV, d], to the arena."""
        count = keys_values.shape[0]
        places = torch.add(self.places[:count], self.strides[:count], alpha=layer)
        self.arena.index_copy_(0, places, keys_values)

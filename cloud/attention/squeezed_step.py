"""What one step does for fixed contexts: which rows select keys, and whose queries are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cloud.attention.packed_step import StepEntry
from cloud.kv.pool import KvLease
from cloud.squeezed.fixed_context import FixedContext
from cloud.squeezed.index import FixedIndex


@dataclass(frozen=True, slots=True)
class SelectingRows:
    """Rows [begin, end) of the batch select among the keys that `index` covers."""

    entry: StepEntry
    context: FixedContext
    index: FixedIndex
    begin: int
    end: int


class _KeptRows(NamedTuple):
    """Queries of rows at `positions` are kept, from place `first` of the step's on."""

    context: FixedContext
    positions: list[int]
    first: int


class SqueezedStep:
    """See the module's docstring. selecting: at most one run of rows an entry, in order.

    kept_rows: the batch's rows whose queries are kept, as many as `num_kept`.
    """

    def __init__(self, entries: Sequence[StepEntry]) -> None:
        self.selecting: list[SelectingRows] = []
        self.kept_rows: list[int] = []
        self._kept: list[_KeptRows] = []
        self._entries = entries
        self._queries: Tensor | None = None  # [layers of the step, num_kept, H, d]
        self._first_layer = 0
        for entry in entries:
            if entry.context is not None:
                self._lay_out(entry, entry.context)

    @classmethod
    def of(cls, entries: Sequence[StepEntry]) -> SqueezedStep | None:
        """None where no entry has a fixed context."""
        return cls(entries) if any(entry.context is not None for entry in entries) else None

    @property
    def num_kept(self) -> int:
        """How many rows' queries are kept."""
        return len(self.kept_rows)

    def room_for_queries(self, layers: range, num_heads: int, head_dim: int) -> Tensor:
        """Where the rotated queries of the kept rows go: float32 [layers, num_kept, H, d].

        Layers that a row's session does not reach stay as they are.
        """
        if self._queries is None:
            self._first_layer = layers.start
            self._queries = torch.empty(len(layers), self.num_kept, num_heads, head_dim)
        return self._queries

    def keep(self, layer: int, layers: range, query: Tensor) -> None:
        """Keep the queries of the active rows at `layer`, [n, H, d]. layers: of the whole step."""
        active = [row for row in self.kept_rows if row < query.shape[0]]
        if active:
            room = self.room_for_queries(layers, query.shape[1], query.shape[2])
            room[layer - layers.start, : len(active)] = query[active]

    def count(self, rows: SelectingRows, num_read: int, num_heads: int) -> None:
        """num_read keys of the fixed context were read by its rows. num_heads: key-value heads of
        all layers together."""
        squeezing = rows.context.squeezing
        squeezing.num_read += num_read
        squeezing.num_seen += (rows.end - rows.begin) * rows.index.num_tokens * num_heads

    def finish(self) -> None:
        """All rows have run: hand the queries over, and have complete segments indexed."""
        if self._queries is not None:
            for context, positions, first in self._kept:
                at = [layer - self._first_layer for layer in context.layers]
                context.take(positions, self._queries[at, first : first + len(positions)])
        for entry in self._entries:
            if entry.context is not None:
                lease = entry.lease

                def read(
                    layers: Sequence[int], begin: int, end: int, lease: KvLease = lease
                ) -> tuple[Tensor, Tensor]:
                    return _keys_values(lease, layers, begin, end)

                entry.context.ran(entry.stop, read)

    def _lay_out(self, entry: StepEntry, context: FixedContext) -> None:
        context.rewind(entry.start)
        positions = context.recorded(entry.start, entry.stop)
        if positions:
            self._kept.append(_KeptRows(context, positions, self.num_kept))
            self.kept_rows += [entry.begin + place - entry.start for place in positions]
        places = context.selecting(entry.start, entry.stop)
        index = context.index() if places else None
        if index is not None:
            begin = entry.begin + places.start - entry.start
            self.selecting.append(SelectingRows(entry, context, index, begin, entry.end))


def _keys_values(
    lease: KvLease, layers: Sequence[int], begin: int, end: int
) -> tuple[Tensor, Tensor]:
    """Copies of keys and values of positions [begin, end): float32 [N, KV, end - begin, d]."""
    arena = lease.pool.arena
    out = torch.empty(len(layers), arena.shape[1], end - begin, arena.shape[2])
    at = 0
    for row, stride, count in lease.spans(begin, end):
        for place, layer in enumerate(layers):
            first = row + (layer - lease.split) * stride
            out[place, :, at : at + count] = arena[first : first + count].transpose(0, 1)
        at += count
    keys, values = out.chunk(2, dim=1)
    return keys, values

"""Attention over pages, for GPUs: no history is gathered and none is padded.

The kernels (`cloud.gpu.attention_kernels`) find a session's pages through block tables. Single rows
of all sessions are one launch, and runs of rows (prefill, drafts) are another, whatever the mix.
Triton, which torch's builds for CUDA bring, compiles the kernels when they first run. On a CPU they
run in Triton's interpreter, which is far too slow for anything but tests.

Promise: a row's attention has the same bits in every launch that cuts histories alike. The cut
follows from the number of rows and the longest history (`decode_shape` of the kernels' module).
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cloud.attention.base import AttentionBackend, AttentionTraits
from cloud.attention.packed_step import PackedStep, StepEntry
from cloud.kv.tables import BlockTables

if TYPE_CHECKING:
    from cloud.gpu.attention_kernels import QueryBlocks
    from cloud.gpu.paged_rows import PagedRows


class PagedStep(NamedTuple):
    """A step on the device.

    rows: all T rows. singles: the same with slot -1 for rows of runs; None: no row is single.
    blocks: the runs; None: there is none. max_tokens: no row is at a position as high.
    """

    rows: PagedRows
    singles: PagedRows | None
    blocks: QueryBlocks | None
    max_tokens: int

    def attend(self, layer: int, query: Tensor, traits: AttentionTraits) -> Tensor:
        """Attention of the first n rows, whose keys and values are stored: [n, H, d] -> same."""
        from cloud.gpu.attention_kernels import ScoreTraits, decode_attention, run_attention

        count = query.shape[0]
        scores = ScoreTraits(*traits)
        out = None
        if self.singles is not None:
            out = decode_attention(
                query.contiguous(),
                scores,
                rows=self.singles.first(count),
                layer=layer,
                max_tokens=self.max_tokens,
            )
        if self.blocks is not None:
            query = query if query.stride(2) == 1 else query.contiguous()
            out = run_attention(
                query,
                scores,
                rows=self.rows.first(count),
                blocks=self.blocks,
                layer=layer,
                out=out,
            )
        return torch.zeros_like(query) if out is None else out


class PagedAttention(AttentionBackend):
    """See the module's docstring. Here with tables of this step alone; `cloud.engine.gpu_engine`
    keeps them from step to step."""

    name: ClassVar[str] = "paged"

    def __init__(self, step: PackedStep) -> None:
        super().__init__(step)
        self._tables = BlockTables(step.arena.device, of_one_step=True)
        self._paged: PagedStep | None = None

    @classmethod
    def runs_on(cls, device: torch.device) -> bool:
        """See AttentionBackend."""
        return has_triton() and (device.type == "cuda" or interprets())

    def attend(
        self, layer: int, entries: Sequence[StepEntry], query: Tensor, traits: AttentionTraits
    ) -> Tensor:
        """See AttentionBackend."""
        if self._paged is None:
            arena = self.step.arena
            group = query.shape[1] * 2 // arena.shape[1]
            self._paged = paged_step(self.step.entries, self._tables, arena, group=group)
        return self._paged.attend(layer, query, traits)


def paged_step(
    entries: Sequence[StepEntry], tables: BlockTables, arena: Tensor, *, group: int
) -> PagedStep:
    """The step of `entries`. group: how many query heads share keys."""
    from cloud.gpu.attention_kernels import QueryBlocks, rows_in_a_block
    from cloud.gpu.paged_rows import PagedRows

    num_rows = entries[-1].end
    table = np.empty((4, num_rows), dtype=np.int32)  # slots, positions, splits, slots of singles
    firsts: list[int] = []
    counts: list[int] = []
    size = rows_in_a_block(group)
    for entry in entries:
        part = slice(entry.begin, entry.end)
        slot = tables.slot(entry.lease)
        table[0, part] = slot
        table[1, part] = np.arange(entry.start, entry.stop)
        table[2, part] = entry.lease.split
        is_run = entry.num_rows > 1
        table[3, part] = -1 if is_run else slot
        if is_run:
            begins = range(entry.begin, entry.end, size)
            firsts.extend(begins)
            counts.extend(min(size, entry.end - begin) for begin in begins)
    device = arena.device
    meta = torch.from_numpy(table).to(device)
    rows = PagedRows(arena, tables.base, tables.stride, meta[0], meta[1], meta[2])
    blocks = None
    if firsts:
        both = torch.tensor([firsts, counts], dtype=torch.int32).to(device)
        blocks = QueryBlocks(both[0], both[1], size)
    any_single = bool((table[3] >= 0).any())
    return PagedStep(
        rows,
        rows._replace(slots=meta[3]) if any_single else None,
        blocks,
        int(table[1].max()) + 1,
    )


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def interprets() -> bool:
    """Whether Triton's interpreter runs the kernels, on CPUs: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"

"""Where a position of a session lies in the arena: the look-up in its table, for kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def arena_row(base, stride, slot, position, layer, table_width, PAGE: tl.constexpr):
    """The arena row, int64, of one position. slot, position: int64 (`cloud.gpu.paged_rows`)."""
    entry = slot * table_width + position // PAGE
    block = tl.load(base + entry).to(tl.int64) + layer * tl.load(stride + entry).to(tl.int64)
    return block * PAGE + position % PAGE


@triton.jit
def arena_rows(base, stride, slot, positions, seen, layer, table_width, PAGE: tl.constexpr):
    """The same for a block of positions of one session; those that are not `seen` mean nothing."""
    entry = slot * table_width + positions // PAGE
    block = tl.load(base + entry, mask=seen, other=0).to(tl.int64)
    block += layer * tl.load(stride + entry, mask=seen, other=0).to(tl.int64)
    return block * PAGE + positions % PAGE

"""Attention over paged histories: one kernel for rows that decode, one for runs of rows.

T rows of the batch, H query heads, KV key-value heads, G = H / KV heads that share keys, d channels
a head. Histories are read where they lie, page by page, through the sessions' tables
(`cloud.gpu.paged_rows`). Softmax runs online over blocks of positions (arXiv:2205.14135,
Algorithm 1). A long history is cut into equal parts that run side by side and are joined at the end
("split-KV", as in flash-decoding). A part's length depends on the number of rows and on the longest
history of the launch (`decode_shape`). So a row's numbers have the same bits in all launches that
cut alike, whoever shares the batch.

Windows, caps and sinks: see `cloud.attention.base.AttentionTraits`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cloud.gpu.overlap import gdc_launch_dependents, gdc_wait, overlap_options
from cloud.gpu.paged_rows import PAGE, PagedRows
from cloud.gpu.places import arena_rows

NO_WINDOW: Final = 1 << 30  # a window that hides nothing
MAX_FEW_ROWS: Final = 16


class ScoreTraits(NamedTuple):
    """scale: on the scores. window, cap: None where there is none. sinks: [H] float32 or None."""

    scale: float
    window: int | None = None
    cap: float | None = None
    sinks: Tensor | None = None


class QueryBlocks(NamedTuple):
    """Runs of rows, cut into blocks of at most `size` rows: int32 [B] each, on the device.

    first: the block's first row in the batch. lengths: its rows, which are consecutive positions of
    one session.
    """

    first: Tensor
    lengths: Tensor
    size: int


@triton.jit
def _scores(q, k, scale, cap, HAS_CAP: tl.constexpr, PRECISION: tl.constexpr):
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    if HAS_CAP:
        s = cap * (1.0 - 2.0 / (tl.exp(2.0 * s / cap) + 1.0))  # cap * tanh(s / cap)
    return s


@triton.jit(do_not_specialize=["layer", "window"])
def _decode_part(
    queries, arena, base, stride, slots, positions, splits, part_out, part_max, part_sum,
    layer, scale, window, cap, table_width,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, G: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_N: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr,
    HAS_CAP: tl.constexpr, PRECISION: tl.constexpr, PAGE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    part = tl.program_id(2)
    slot = tl.load(slots + row).to(tl.int64)
    end = tl.load(positions + row) + 1
    if (slot >= 0) & (tl.load(splits + row) <= layer):
        begin = tl.maximum(part * PART, end - window)
        stop = tl.minimum(part * PART + PART, end)
        if begin < stop:
            d = tl.arange(0, BLOCK_D)
            g = tl.arange(0, BLOCK_G)
            lanes = (g[:, None] < G) & (d[None, :] < D)
            heads = head * G + g
            q_at = (row * H + heads[:, None]) * D + d[None, :]
            q = tl.load(queries + q_at, mask=lanes, other=0.0)
            top = tl.full([BLOCK_G], float("-inf"), tl.float32)
            total = tl.zeros([BLOCK_G], tl.float32)
            out = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
            for first in range(begin, stop, BLOCK_N):
                n = first + tl.arange(0, BLOCK_N)
                seen = n < stop
                row_of = arena_rows(base, stride, slot, n, seen, layer, table_width, PAGE)
                place = row_of * (2 * KV * D) + head * D
                there = seen[:, None] & (d[None, :] < D)
                k = tl.load(arena + place[:, None] + d[None, :], mask=there, other=0.0)
                v = tl.load(arena + place[:, None] + KV * D + d[None, :], mask=there, other=0.0)
                s = _scores(q, k.to(q.dtype), scale, cap, HAS_CAP, PRECISION)
                s = tl.where(seen[None, :], s, float("-inf"))
                higher = tl.maximum(top, tl.max(s, 1))
                p = tl.exp(s - higher[:, None])
                fade = tl.exp(top - higher)
                total = total * fade + tl.sum(p, 1)
                out = out * fade[:, None]
                out += tl.dot(p.to(q.dtype), v.to(q.dtype), input_precision=PRECISION)
                top = higher
            at = (row * H + heads) * PARTS + part
            tl.store(part_max + at, top, mask=g < G)
            tl.store(part_sum + at, total, mask=g < G)
            tl.store(part_out + at[:, None] * D + d[None, :], out, mask=lanes)


@triton.jit(do_not_specialize=["layer", "window"])
def _join_parts(
    part_out, part_max, part_sum, out, sinks, slots, positions, splits, layer, window,
    H: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, PART: tl.constexpr,
    PARTS: tl.constexpr, HAS_SINKS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    d = tl.arange(0, BLOCK_D)
    target = out + (row * H + head) * D + d
    active = (tl.load(slots + row) >= 0) & (tl.load(splits + row) <= layer)
    if active:
        end = tl.load(positions + row) + 1
        begin = tl.maximum(0, end - window)
        top = float("-inf")
        total = 0.0
        mixed = tl.zeros([BLOCK_D], tl.float32)
        for part in range(begin // PART, (end + PART - 1) // PART):
            at = (row * H + head) * PARTS + part
            part_top = tl.load(part_max + at)
            higher = tl.maximum(top, part_top)
            fade = tl.exp(top - higher)
            weight = tl.exp(part_top - higher)
            mixed = mixed * fade + weight * tl.load(part_out + at * D + d, mask=d < D, other=0.0)
            total = total * fade + weight * tl.load(part_sum + at)
            top = higher
        if HAS_SINKS:
            total += tl.exp(tl.load(sinks + head) - top)
        tl.store(target, (mixed / total).to(out.dtype.element_ty), mask=d < D)
    else:
        tl.store(target, tl.zeros([BLOCK_D], tl.float32).to(out.dtype.element_ty), mask=d < D)


class DecodeShape(NamedTuple):
    """How a launch is cut. part: positions of a part. parts: how many there may be. block, warps,
    stages: of one program's loop."""

    part: int
    parts: int
    block: int
    warps: int
    stages: int


def decode_shape(num_rows: int, max_tokens: int, head_dim: int) -> DecodeShape:
    """The cut for `num_rows` rows at positions below `max_tokens`. Measured on an H200.

    Few rows leave most of a GPU idle unless their histories are cut finely. A history has at most
    64 parts, so that joining them stays cheap.
    """
    longest = triton.next_power_of_2(max_tokens)
    few = num_rows <= MAX_FEW_ROWS
    part = max(64 if few else 512, longest // 64)
    parts = max(1, longest // part)
    if head_dim > 128:
        return DecodeShape(part, parts, 32, 4, 2)
    return DecodeShape(part, parts, 64, 4, 3) if few else DecodeShape(part, parts, 32, 2, 4)


def decode_attention(
    queries: Tensor, traits: ScoreTraits, *, rows: PagedRows, layer: int, max_tokens: int
) -> Tensor:
    """Attention of single rows, each over its own history, itself included: [T, H, d] -> same.

    max_tokens: no row of the batch is at a position as high as this; it fixes the launch, so that
    a CUDA graph made with it serves all shorter histories.
    """
    num_rows, num_heads, head_dim = queries.shape
    num_kv = rows.arena.shape[1] // 2
    cut = decode_shape(num_rows, max_tokens, head_dim)
    part, parts = cut.part, cut.parts
    overlap = overlap_options(queries.device)
    block_d = triton.next_power_of_2(head_dim)
    device = queries.device
    part_out = torch.empty((num_rows, num_heads, parts, head_dim), device=device)
    part_max = torch.empty((num_rows, num_heads, parts), device=device)
    part_sum = torch.empty_like(part_max)
    out = torch.empty((num_rows, num_heads, head_dim), dtype=queries.dtype, device=device)
    window = NO_WINDOW if traits.window is None else traits.window
    group = num_heads // num_kv
    _decode_part[(num_rows, num_kv, parts)](
        queries, rows.arena, rows.base, rows.stride, rows.slots, rows.positions, rows.splits,
        part_out, part_max, part_sum, layer, traits.scale, window, traits.cap or 1.0,
        rows.base.shape[1],
        H=num_heads, KV=num_kv, D=head_dim, BLOCK_D=block_d, G=group,
        BLOCK_G=max(16, triton.next_power_of_2(group)), BLOCK_N=cut.block, PART=part,
        PARTS=parts, HAS_CAP=traits.cap is not None, PRECISION=_precision(queries.dtype), PAGE=PAGE,
        num_warps=cut.warps, num_stages=cut.stages, **overlap,
    )  # fmt: skip
    _join_parts[(num_rows, num_heads)](
        part_out, part_max, part_sum, out, out if traits.sinks is None else traits.sinks,
        rows.slots, rows.positions, rows.splits, layer, window,
        H=num_heads, D=head_dim, BLOCK_D=block_d, PART=part, PARTS=parts,
        HAS_SINKS=traits.sinks is not None, num_warps=1, **overlap,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["layer", "window"])
def _run_block(
    queries, arena, base, stride, slots, positions, splits, firsts, counts, out, sinks,
    layer, scale, window, cap, table_width, query_row, query_head, num_rows,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, G: tl.constexpr,
    SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HAS_CAP: tl.constexpr,
    HAS_SINKS: tl.constexpr, PRECISION: tl.constexpr, PAGE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    which = tl.program_id(0)
    head = tl.program_id(1)
    first_row = tl.load(firsts + which).to(tl.int64)
    count = tl.load(counts + which)
    there = first_row < num_rows  # else its session enters at a deeper layer
    slot = tl.load(slots + first_row, mask=there, other=-1).to(tl.int64)
    split = tl.load(splits + first_row, mask=there, other=0)
    if (slot >= 0) & (split <= layer):
        start = tl.load(positions + first_row)
        # The heads that share keys are rows of one tile: line m is row m // G, head m % G.
        m = tl.arange(0, BLOCK_M)
        token = m // G
        heads = head * G + m % G
        real = (token < count) & (token < SIZE)
        d = tl.arange(0, BLOCK_D)
        lanes = real[:, None] & (d[None, :] < D)
        rows = first_row + token
        q_at = rows[:, None] * query_row + heads[:, None] * query_head + d[None, :]
        q = tl.load(queries + q_at, mask=lanes, other=0.0)
        own = start + token
        stop = start + count
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        mixed = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        begin = tl.maximum(0, start + 1 - window) // BLOCK_N * BLOCK_N
        for first in range(begin, stop, BLOCK_N):
            n = first + tl.arange(0, BLOCK_N)
            seen = n < stop
            row_of = arena_rows(base, stride, slot, n, seen, layer, table_width, PAGE)
            place = row_of * (2 * KV * D) + head * D
            held = seen[:, None] & (d[None, :] < D)
            k = tl.load(arena + place[:, None] + d[None, :], mask=held, other=0.0)
            v = tl.load(arena + place[:, None] + KV * D + d[None, :], mask=held, other=0.0)
            s = _scores(q, k.to(q.dtype), scale, cap, HAS_CAP, PRECISION)
            visible = (n[None, :] <= own[:, None]) & (n[None, :] > own[:, None] - window)
            s = tl.where(visible, s, float("-inf"))
            higher = tl.maximum(top, tl.max(s, 1))
            base_line = tl.where(higher == float("-inf"), 0.0, higher)  # a row that saw nothing yet
            p = tl.exp(s - base_line[:, None])
            fade = tl.exp(top - base_line)
            total = total * fade + tl.sum(p, 1)
            mixed = mixed * fade[:, None]
            mixed += tl.dot(p.to(q.dtype), v.to(q.dtype), input_precision=PRECISION)
            top = higher
        if HAS_SINKS:
            total += tl.exp(tl.load(sinks + heads) - top)
        total = tl.where(real, total, 1.0)
        out_at = (rows[:, None] * H + heads[:, None]) * D + d[None, :]
        tl.store(out + out_at, (mixed / total[:, None]).to(out.dtype.element_ty), mask=lanes)


def run_attention(
    queries: Tensor,
    traits: ScoreTraits,
    *,
    rows: PagedRows,
    blocks: QueryBlocks,
    layer: int,
    out: Tensor | None = None,
) -> Tensor:
    """Attention of runs of rows (prefill, drafts), each row over the positions up to its own.

    queries: [T, H, d], d contiguous. The arena already has all rows' keys and values. out: [T, H,
    d], where the rows' results go; None: a new tensor, zero for rows that are in no block. A block
    beyond `queries` is left out. Returns `out`.
    """
    num_rows, num_heads, head_dim = queries.shape
    num_kv = rows.arena.shape[1] // 2
    group = num_heads // num_kv
    if out is None:
        shape = (num_rows, num_heads, head_dim)
        out = torch.zeros(shape, dtype=queries.dtype, device=queries.device)
    window = NO_WINDOW if traits.window is None else traits.window
    block_m = max(16, triton.next_power_of_2(blocks.size * group))
    wide = head_dim > 128 or queries.dtype == torch.float32
    _run_block[(blocks.first.shape[0], num_kv)](
        queries, rows.arena, rows.base, rows.stride, rows.slots, rows.positions, rows.splits,
        blocks.first, blocks.lengths, out, out if traits.sinks is None else traits.sinks,
        layer, traits.scale, window, traits.cap or 1.0, rows.base.shape[1], queries.stride(0),
        queries.stride(1), num_rows,
        H=num_heads, KV=num_kv, D=head_dim, BLOCK_D=triton.next_power_of_2(head_dim), G=group,
        SIZE=blocks.size, BLOCK_M=block_m, BLOCK_N=32 if wide else 64,
        HAS_CAP=traits.cap is not None, HAS_SINKS=traits.sinks is not None,
        PRECISION=_precision(queries.dtype), PAGE=PAGE,
        num_warps=8 if block_m >= 128 else 4, num_stages=2, **overlap_options(queries.device),
    )  # fmt: skip
    return out


def rows_in_a_block(group: int) -> int:
    """How many rows one tile of `run_attention` holds, where `group` heads share keys: they lie in
    the tile too."""
    return max(1, 128 // group)


def _precision(dtype: torch.dtype) -> str:
    """Tensor cores shorten float32 to 10 bits of mantissa unless they are told not to."""
    return "ieee" if dtype == torch.float32 else "tf32"

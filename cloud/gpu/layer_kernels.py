"""What a decoder layer does between its matrix products, one kernel each.

T rows of the batch, D the width of the residual stream, H query heads, KV key-value heads, d
channels a head, I the width of the MLP. A row enters the model at its session's split. Its residual
state lies in `hidden` from the start, and a kernel leaves it alone at the layers below. So rows
that enter at different layers share every launch, and one CUDA graph serves all of them.

Sums and products are float32 whatever the tensors' dtype. Triton's interpreter runs the same code
on CPUs, for tests.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cloud.gpu.overlap import gdc_launch_dependents, gdc_wait, overlap_options
from cloud.gpu.paged_rows import PAGE, PagedRows
from cloud.gpu.places import arena_row

ACTIVATIONS: Final = {"silu": 0, "gelu_tanh": 1, "gelu": 2}


class RmsNorm(NamedTuple):
    """Root mean square norm (arXiv:1910.07467, eq. (4)): x / rms(x) * weight, weight [D]."""

    weight: Tensor
    eps: float


@triton.jit(do_not_specialize=["layer"])
def _add_norm(
    hidden, delta, out, splits, after, weight, layer, after_eps, eps, D,
    HAS_DELTA: tl.constexpr, HAS_AFTER: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < D
    x = tl.load(hidden + row * D + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        # `delta` is what the layer before gave: nothing, for a row that had not entered then.
        entered = tl.zeros([BLOCK], tl.int32) + tl.load(splits + row) < layer
        y = tl.load(delta + row * D + at, mask=inside, other=0.0).to(tl.float32)
        if HAS_AFTER:
            y = y * tl.rsqrt(tl.sum(y * y) / D + after_eps)
            y = y * tl.load(after + at, mask=inside, other=0.0).to(tl.float32)
            y = y.to(delta.dtype.element_ty).to(tl.float32)
        total = (x + y).to(hidden.dtype.element_ty)
        tl.store(hidden + row * D + at, total, mask=inside & entered)
        x = tl.where(entered, total.to(tl.float32), x)
    if HAS_WEIGHT:
        x = x * tl.rsqrt(tl.sum(x * x) / D + eps)
        x = x * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + row * D + at, x.to(out.dtype.element_ty), mask=inside)


def add_norm(
    hidden: Tensor,
    delta: Tensor | None,
    norm: RmsNorm,
    *,
    rows: PagedRows,
    layer: int,
    after: RmsNorm | None = None,
) -> Tensor:
    """Add `delta` [T, D] to the rows of `hidden` [T, D] that entered below `layer`, and norm them.

    delta: None: nothing to add. after: a norm that `delta` goes through first (Gemma). Returns the
    norm of all rows, [T, D].
    """
    out = torch.empty_like(hidden)
    _launch_add_norm(hidden, delta, norm, out, rows=rows, layer=layer, after=after)
    return out


def add(
    hidden: Tensor, delta: Tensor, *, rows: PagedRows, layer: int, after: RmsNorm | None = None
) -> None:
    """The same without the second norm: only `hidden` changes."""
    _launch_add_norm(hidden, delta, None, hidden, rows=rows, layer=layer, after=after)


def _launch_add_norm(
    hidden: Tensor,
    delta: Tensor | None,
    norm: RmsNorm | None,
    out: Tensor,
    *,
    rows: PagedRows,
    layer: int,
    after: RmsNorm | None,
) -> None:
    num_rows, width = hidden.shape
    _add_norm[(num_rows,)](
        hidden,
        hidden if delta is None else delta,
        out,
        rows.splits,
        hidden if after is None else after.weight,
        hidden if norm is None else norm.weight,
        layer,
        0.0 if after is None else after.eps,
        0.0 if norm is None else norm.eps,
        width,
        HAS_DELTA=delta is not None,
        HAS_AFTER=after is not None,
        HAS_WEIGHT=norm is not None,
        BLOCK=triton.next_power_of_2(width),
        num_warps=8 if width > 2048 else 4,
        **overlap_options(hidden.device),
    )


@triton.jit(do_not_specialize=["layer"])
def _rotate_store(
    qkv, queries, arena, base, stride, slots, positions, splits, cosine, sine, query_norm,
    key_norm, layer, eps, table_width, qkv_row, rotary_dim,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
    HAS_NORMS: tl.constexpr, PAGE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    at = tl.arange(0, BLOCK)
    inside = at < D
    half = rotary_dim // 2
    # Rotation swaps the halves of the first `rotary_dim` channels: (x1, x2) -> (-x2, x1).
    partner = tl.where(at < half, at + half, at - half)
    turned = (at < rotary_dim) & inside
    source = qkv + row * qkv_row + head * D
    x = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
    position = tl.load(positions + row).to(tl.int64)
    if head < H + KV:
        y = tl.load(source + partner, mask=turned, other=0.0).to(tl.float32)
        if HAS_NORMS:
            weight = query_norm
            if head >= H:
                weight = key_norm
            scale = tl.rsqrt(tl.sum(x * x) / D + eps)
            x = x * scale * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
            y = y * scale * tl.load(weight + partner, mask=turned, other=0.0).to(tl.float32)
        cos = tl.load(cosine + position * rotary_dim + at, mask=turned, other=1.0).to(tl.float32)
        sin = tl.load(sine + position * rotary_dim + at, mask=turned, other=0.0).to(tl.float32)
        x = x * cos + tl.where(at < half, -y, y) * sin
    if head < H:
        target = queries + (row * H + head) * D
        tl.store(target + at, x.to(queries.dtype.element_ty), mask=inside)
    else:
        slot = tl.load(slots + row).to(tl.int64)
        if (slot >= 0) & (tl.load(splits + row) <= layer):
            row_of = arena_row(base, stride, slot, position, layer, table_width, PAGE)
            place = row_of * (2 * KV * D) + (head - H) * D
            tl.store(arena + place + at, x.to(arena.dtype.element_ty), mask=inside)


def rotate_and_store(
    qkv: Tensor,
    *,
    rows: PagedRows,
    layer: int,
    num_heads: int,
    head_dim: int,
    cosine: Tensor,
    sine: Tensor,
    norms: tuple[RmsNorm, RmsNorm] | None = None,
) -> Tensor:
    """Rotated queries [T, H, d] of qkv [T, (H + 2 KV) d]; keys and values go to the arena.

    cosine, sine: [P, r] of every position, contiguous (arXiv:2104.09864, eq. (34), half layout);
    the first r channels of a head turn. norms: of each head's queries and keys, before they turn.
    """
    num_rows = qkv.shape[0]
    num_kv = rows.arena.shape[1] // 2
    queries = torch.empty((num_rows, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    query_norm, key_norm = (norms[0].weight, norms[1].weight) if norms else (qkv, qkv)
    _rotate_store[(num_rows, num_heads + 2 * num_kv)](
        qkv, queries, rows.arena, rows.base, rows.stride, rows.slots, rows.positions, rows.splits,
        cosine, sine, query_norm, key_norm, layer, norms[0].eps if norms else 0.0,
        rows.base.shape[1], qkv.stride(0), cosine.shape[1],
        H=num_heads, KV=num_kv, D=head_dim, BLOCK=triton.next_power_of_2(head_dim),
        HAS_NORMS=norms is not None, PAGE=PAGE, num_warps=1, **overlap_options(qkv.device),
    )  # fmt: skip
    return queries


@triton.jit
def _gated(
    gate_up, out, inner, KIND: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
):  # fmt: skip
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < inner
    gate = tl.load(gate_up + row * 2 * inner + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * inner + inner + at, mask=inside, other=0.0).to(tl.float32)
    if KIND == 0:
        active = gate / (1.0 + tl.exp(-gate))
    elif KIND == 1:
        # tanh(z) = 1 - 2 / (exp(2 z) + 1)
        z = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        active = 0.5 * gate * (2.0 - 2.0 / (tl.exp(2.0 * z) + 1.0))
    else:
        active = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    active = active.to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * inner + at, (active * up).to(out.dtype.element_ty), mask=inside)


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """activation(gate) * up: [T, 2 I] -> [T, I]. activation: one of `ACTIVATIONS`."""
    num_rows, inner = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((num_rows, inner), dtype=gate_up.dtype, device=gate_up.device)
    block = min(1024, triton.next_power_of_2(inner))
    grid = (num_rows, triton.cdiv(inner, block))
    _gated[grid](
        gate_up, out, inner, KIND=ACTIVATIONS[activation], BLOCK=block,
        **overlap_options(gate_up.device),
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["layer"])
def _store_rows(
    keys_values, arena, base, stride, slots, positions, splits, layer, table_width, row_stride,
    head_stride, HEADS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, PAGE: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    at = tl.arange(0, BLOCK)
    inside = at < D
    slot = tl.load(slots + row).to(tl.int64)
    if (slot >= 0) & (tl.load(splits + row) <= layer):
        position = tl.load(positions + row).to(tl.int64)
        row_of = arena_row(base, stride, slot, position, layer, table_width, PAGE)
        place = (row_of * HEADS + head) * D
        x = tl.load(keys_values + row * row_stride + head * head_stride + at, mask=inside)
        tl.store(arena + place + at, x.to(arena.dtype.element_ty), mask=inside)


def store_rows(keys_values: Tensor, *, rows: PagedRows, layer: int) -> None:
    """Write keys and values [T, 2 KV, d] to the arena, for layers that rotate by themselves."""
    num_rows, heads, head_dim = keys_values.shape
    if keys_values.stride(2) != 1:
        keys_values = keys_values.contiguous()
    _store_rows[(num_rows, heads)](
        keys_values, rows.arena, rows.base, rows.stride, rows.slots, rows.positions, rows.splits,
        layer, rows.base.shape[1], keys_values.stride(0), keys_values.stride(1),
        HEADS=heads, D=head_dim, BLOCK=triton.next_power_of_2(head_dim), PAGE=PAGE, num_warps=1,
        **overlap_options(keys_values.device),
    )  # fmt: skip

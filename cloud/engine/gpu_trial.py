"""Does paged attention work on this device? Tried once when a server loads.

A GPU may lack the shared memory that a kernel wants, and a compiler may be wrong. Layers are tried
one by one (`cloud.engine.gpu_layer`); attention is tried here, since layers that torch runs need it
too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch

from cloud.attention.base import AttentionTraits
from cloud.attention.in_place import InPlaceAttention
from cloud.attention.packed_step import PackedStep, StepEntry
from cloud.attention.paged import PagedAttention
from cloud.kv.pool import KvPool, KvShape

_TOKENS: Final = 40  # more than two pages
_RUN: Final = 6
_MAX_FLOAT32_ERROR: Final = 1e-5  # relative
_MAX_HALF_ERROR: Final = 2e-2


@torch.inference_mode()
def why_no_paged_attention(
    shape: KvShape, num_heads: int, device: torch.device, *, kv_dtype: torch.dtype | None = None
) -> str | None:
    """Why it cannot be used for heads of this shape, in a few words; None: it can.

    A run of rows and a single row are compared with attention in place, with a window and without.
    kv_dtype: what keys and values are kept in; None: the shape's. The queries have the shape's.
    """
    limit = _MAX_FLOAT32_ERROR if shape.dtype == torch.float32 else _MAX_HALF_ERROR
    split = shape.num_layers - 1
    kept = shape if kv_dtype is None else replace(shape, dtype=kv_dtype)
    paged, entries = _step(kept, split, device)
    plain, plain_entries = _step(shape, split, device)
    paged.arena.copy_(torch.randn(paged.arena.shape, device=device))
    plain.arena.copy_(paged.arena)  # the same numbers: rounding them is no error here
    query = torch.randn(_RUN + 1, num_heads, shape.head_dim, device=device).to(shape.dtype)
    for window in (None, 20):
        traits = AttentionTraits(shape.head_dim**-0.5, window=window)
        want = InPlaceAttention(plain).attend(split, plain_entries, query, traits).float()
        try:
            got = PagedAttention(paged).attend(split, entries, query, traits).float()
            error = float((got - want).norm() / want.norm())
        except Exception as error_of_kernel:  # Triton's errors have no common kind
            line = (str(error_of_kernel).strip().splitlines() or [""])[0]
            return f"{type(error_of_kernel).__name__}: {line[:200]}"
        if not error < limit:
            return f"its results differ by {error:.1e}"
    return None


def _step(
    shape: KvShape, split: int, device: torch.device
) -> tuple[PackedStep, Sequence[StepEntry]]:
    room = 2 * shape.num_bytes(split=split, max_tokens=_TOKENS)
    pool = KvPool(shape, limit_bytes=room, device=device)
    run, single = (pool.lease(split=split, max_tokens=_TOKENS) for _ in range(2))
    entries = [
        StepEntry(run, start=_TOKENS - _RUN, begin=0, num_rows=_RUN),
        StepEntry(single, start=_TOKENS - 1, begin=_RUN, num_rows=1),
    ]
    return PackedStep(entries), entries

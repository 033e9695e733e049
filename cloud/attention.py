"""Attention of a packed batch over the sessions' KV leases, and its door into transformers.

transformers' layers call `packed_attention` through the attention interface (registered under
`ATTENTION_NAME`) with rotated queries and keys; which rows belong to which session travels in
the keyword argument `step`. Each session attends to its own slab and nothing else, one kernel
call a session, so no result depends on who shares the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from cloud.kv_pool import KvLease

ATTENTION_NAME: Final = "splitpoint_packed"


class StepEntry:
    """Rows [begin, end) of the packed batch: one session's positions from `start` on."""

    __slots__ = ("begin", "end", "lease", "masks", "start")

    def __init__(self, lease: KvLease, *, start: int, begin: int, num_rows: int) -> None:
        self.lease = lease
        self.start = start
        self.begin = begin
        self.end = begin + num_rows
        self.masks: dict[int | None, Tensor] = {}

    @property
    def num_rows(self) -> int:
        return self.end - self.begin


class PackedStep:
    """One forward pass: its entries by split, so that those active at a layer are a prefix."""

    __slots__ = ("active", "entries")

    def __init__(self, entries: Sequence[StepEntry]) -> None:
        self.entries = entries
        self.active: Sequence[StepEntry] = ()  # set by the engine as layers go by


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    step: PackedStep,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature. query: [1, H, T, d]; key, value: [1, KV, T, d].

    Writes keys and values into the leases and returns [1, T, H, d].
    """
    layer = module.layer_idx
    if not isinstance(layer, int):
        raise TypeError("attention module without a layer index")
    keys_values = torch.cat((key[0], value[0]))  # [2 KV, T, d]
    heads = query[0].transpose(0, 1)  # [T, H, d]
    output = attend(
        step.active, layer, heads, keys_values, scale=scaling, window=sliding_window, cap=softcap
    )
    return output[None], None


def attend(
    entries: Sequence[StepEntry],
    layer: int,
    query: Tensor,
    keys_values: Tensor,
    *,
    scale: float,
    window: int | None = None,
    cap: float | None = None,
) -> Tensor:
    """Store the rows' keys and values, then attend, session by session.

    query: [T, H, d]; keys_values: [2 KV, T, d], keys before values. Returns [T, H, d].
    window: tokens a position sees, itself included. cap: scores become cap * tanh(scores / cap)
    (Gemma 2, arXiv:2408.00118, section 2).
    """
    outputs = []
    for entry in entries:
        begin, end, start = entry.begin, entry.end, entry.start
        stop = start + end - begin
        slab = entry.lease.layer(layer)  # [2 KV, max_tokens, d]
        slab[:, start:stop] = keys_values[:, begin:end]
        outputs.append(_attend_one(entry, slab, query[begin:end], scale, window, cap))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend_one(
    entry: StepEntry,
    slab: Tensor,
    query: Tensor,
    scale: float,
    window: int | None,
    cap: float | None,
) -> Tensor:
    """One session's rows, [T, H, d] -> [T, H, d]."""
    num_rows, num_heads, head_dim = query.shape
    num_kv_heads = slab.shape[0] // 2
    stop = entry.start + num_rows
    first = 0 if window is None else max(0, entry.start - window + 1)
    history = slab[None, :, first:stop]
    keys, values = history[:, :num_kv_heads], history[:, num_kv_heads:]  # [1, KV, S, d]
    if num_rows == 1:
        # The heads of one group share keys: they become that many query rows, without a mask.
        grouped = query.reshape(1, num_kv_heads, num_heads // num_kv_heads, head_dim)
        if cap is None:
            out = scaled_dot_product_attention(grouped, keys, values, scale=scale)
        else:
            out = _capped(grouped, keys, values, None, scale, cap)
        return out.reshape(1, num_heads, head_dim)
    mask = _mask(entry, first, window, query.device)
    heads = query.transpose(0, 1)[None]  # [1, H, T, d]
    if cap is None:
        out = scaled_dot_product_attention(
            heads, keys, values, attn_mask=mask, scale=scale, enable_gqa=True
        )
    else:
        repeat = num_heads // num_kv_heads
        keys = keys.repeat_interleave(repeat, dim=1)
        out = _capped(heads, keys, values.repeat_interleave(repeat, dim=1), mask, scale, cap)
    return out[0].transpose(0, 1)


def _capped(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float, cap: float
) -> Tensor:
    """Soft-capped attention, written out: no fused kernel knows it. All [1, H, ., d]."""
    scores = torch.matmul(query, keys.transpose(2, 3)).mul_(scale / cap).tanh_().mul_(cap)
    if mask is not None:
        scores.masked_fill_(~mask, float("-inf"))
    return torch.matmul(torch.softmax(scores, dim=-1), values)


def _mask(entry: StepEntry, first: int, window: int | None, device: torch.device) -> Tensor:
    """[T, S] bool: which of the keys from position `first` on each row sees. Once a step."""
    mask = entry.masks.get(window)
    if mask is None:
        stop = entry.start + entry.num_rows
        rows = torch.arange(entry.start, stop, device=device)[:, None]
        columns = torch.arange(first, stop, device=device)[None]
        mask = columns <= rows
        if window is not None:
            mask &= columns > rows - window
        entry.masks[window] = mask
    return mask


AttentionInterface.register(ATTENTION_NAME, packed_attention)

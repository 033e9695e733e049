"""Attention of a packed batch over the sessions' KV leases, and its door into transformers.

transformers' layers call `packed_attention` through the attention interface (registered under
`ATTENTION_NAME`) with rotated queries and keys; which rows belong to which session travels in
the keyword argument `step`. Each session attends to its own slab and nothing else, one kernel
call a session, so no result depends on who shares the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from cloud.kv_pool import KvLease

ATTENTION_NAME: Final = "splitpoint_packed"


class StepEntry:
    """Rows [begin, end) of the packed batch: one session's positions from `start` on.

    Views into the slab are made once a step for all layers: one call each instead of one a
    layer, which is where the time of a small model's decode step goes.
    """

    __slots__ = ("_histories", "_targets", "begin", "end", "lease", "masks", "start")

    def __init__(self, lease: KvLease, *, start: int, begin: int, num_rows: int) -> None:
        self.lease = lease
        self.start = start
        self.begin = begin
        self.end = begin + num_rows
        self.masks: dict[int | None, Tensor] = {}
        self._targets: tuple[Tensor, ...] = ()
        self._histories: dict[int | None, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = {}

    @property
    def num_rows(self) -> int:
        return self.end - self.begin

    @property
    def stop(self) -> int:
        """Position behind the last row."""
        return self.start + self.end - self.begin

    def first(self, window: int | None) -> int:
        """The lowest position that any of the rows sees."""
        return 0 if window is None else max(0, self.start - window + 1)

    def target(self, layer: int) -> Tensor:
        """Where the rows' keys and values of `layer` go: [2 KV, T, d]."""
        if not self._targets:
            self._targets = self.lease.slab[:, :, self.start : self.stop].unbind()
        return self._targets[layer - self.lease.split]

    def history(self, layer: int, window: int | None) -> tuple[Tensor, Tensor]:
        """Keys and values of `layer` that the rows see, these rows included: [1, KV, S, d] each."""
        views = self._histories.get(window)
        if views is None:
            seen = self.lease.slab[:, None, :, self.first(window) : self.stop]
            keys, values = seen.chunk(2, dim=2)
            views = self._histories[window] = (keys.unbind(), values.unbind())
        index = layer - self.lease.split
        return views[0][index], views[1][index]


class Traits(NamedTuple):
    """How a layer attends. window: tokens a position sees, itself included (None: all of them).

    cap: scores become cap * tanh(scores / cap) (Gemma 2, arXiv:2408.00118, section 2).
    """

    scale: float
    window: int | None = None
    cap: float | None = None


class PackedStep:
    """One forward pass: its entries by split, so that those active at a layer are a prefix."""

    __slots__ = ("active", "entries", "traits")

    def __init__(self, entries: Sequence[StepEntry]) -> None:
        self.entries = entries
        self.active: Sequence[StepEntry] = ()  # set by the engine as layers go by
        self.traits: Traits | None = None  # what transformers asked for last


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
    keys_values = torch.cat((key[0], value[0])).transpose(0, 1)  # [T, 2 KV, d]
    heads = query[0].transpose(0, 1)  # [T, H, d]
    step.traits = Traits(scaling, sliding_window, softcap)
    return attend(step.active, layer, heads, keys_values, step.traits)[None], None


def attend(
    entries: Sequence[StepEntry],
    layer: int,
    query: Tensor,
    keys_values: Tensor,
    traits: Traits,
) -> Tensor:
    """Store the rows' keys and values, then attend, session by session.

    query: [T, H, d]; keys_values: [T, 2 KV, d], keys before values. Returns [T, H, d].
    """
    outputs = []
    by_head = keys_values.transpose(0, 1)  # [2 KV, T, d]
    for entry in entries:
        entry.target(layer).copy_(by_head[:, entry.begin : entry.end])
        outputs.append(_attend_one(entry, layer, query[entry.begin : entry.end], traits))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend_one(
    entry: StepEntry,
    layer: int,
    query: Tensor,
    traits: Traits,
) -> Tensor:
    """One session's rows, [T, H, d] -> [T, H, d]."""
    scale, window, cap = traits
    num_rows, num_heads, head_dim = query.shape
    keys, values = entry.history(layer, window)
    num_kv_heads = keys.shape[1]
    if num_rows == 1:
        # The heads of one group share keys: they become that many query rows, without a mask.
        grouped = query.reshape(1, num_kv_heads, num_heads // num_kv_heads, head_dim)
        if cap is None:
            out = scaled_dot_product_attention(grouped, keys, values, scale=scale)
        else:
            out = _capped(grouped, keys, values, None, scale, cap)
        return out.reshape(1, num_heads, head_dim)
    mask = _mask(entry, window, query.device)
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


def _mask(entry: StepEntry, window: int | None, device: torch.device) -> Tensor:
    """[T, S] bool: which of the keys of its history each row sees. Made once a step."""
    mask = entry.masks.get(window)
    if mask is None:
        rows = torch.arange(entry.start, entry.stop, device=device)[:, None]
        columns = torch.arange(entry.first(window), entry.stop, device=device)[None]
        mask = columns <= rows
        if window is not None:
            mask &= columns > rows - window
        entry.masks[window] = mask
    return mask


AttentionInterface.register(ATTENTION_NAME, packed_attention)

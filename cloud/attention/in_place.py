"""Attention that reads each session's history where it lies: one kernel call a session.

For CPUs, where a call costs little and copying a history would cost more than reading it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from cloud.attention.base import AttentionBackend, AttentionTraits
from cloud.attention.packed_step import PackedStep, StepEntry

# Of one extent: every layer's keys and every layer's values, [1, KV, S, d] each.
_Views: TypeAlias = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


class InPlaceAttention(AttentionBackend):
    """Session by session, over views into the arena.

    The views are made once a step for all layers: one call instead of one a layer, which is
    where the time of a small model's decode step goes.
    """

    name: ClassVar[str] = "in_place"

    def __init__(self, step: PackedStep) -> None:
        super().__init__(step)
        # By first row of the entry and window.
        self._views: dict[tuple[int, int | None], list[_Views]] = {}
        self._masks: dict[tuple[int, int | None], Tensor] = {}

    def attend(
        self, layer: int, entries: Sequence[StepEntry], query: Tensor, traits: AttentionTraits
    ) -> Tensor:
        """See AttentionBackend."""
        outputs = [
            self.attend_one(layer, entry, query[entry.begin : entry.end], traits)
            for entry in entries
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def attend_one(
        self, layer: int, entry: StepEntry, query: Tensor, traits: AttentionTraits
    ) -> Tensor:
        """One session's rows: query [T, H, d] -> [T, H, d]."""
        scale, window, cap, sinks = traits
        num_rows, num_heads, head_dim = query.shape
        keys, values = self._history(layer, entry, window)
        num_kv_heads = keys.shape[1]
        if num_rows == 1:
            # The heads of one group share keys: they become that many query rows, and no row
            # needs a mask.
            grouped = query.reshape(1, num_kv_heads, num_heads // num_kv_heads, head_dim)
            if cap is None and sinks is None:
                out = scaled_dot_product_attention(grouped, keys, values, scale=scale)
            else:
                if sinks is not None:
                    sinks = sinks.view(1, num_kv_heads, -1, 1)
                out = _spelled_out(grouped, keys, values, None, scale, cap, sinks)
            return out.reshape(1, num_heads, head_dim)
        mask = self._mask(entry, window)
        heads = query.transpose(0, 1)[None]  # [1, H, T, d]
        if cap is None and sinks is None:
            out = scaled_dot_product_attention(
                heads, keys, values, attn_mask=mask, scale=scale, enable_gqa=True
            )
        else:
            repeat = num_heads // num_kv_heads
            keys = keys.repeat_interleave(repeat, dim=1)
            values = values.repeat_interleave(repeat, dim=1)
            if sinks is not None:
                sinks = sinks.view(1, num_heads, 1, 1)
            out = _spelled_out(heads, keys, values, mask, scale, cap, sinks)
        return out[0].transpose(0, 1)

    def _history(self, layer: int, entry: StepEntry, window: int | None) -> tuple[Tensor, Tensor]:
        """Keys and values of `layer` that the rows see, these rows included: [1, KV, S, d] each.

        They stay in place where they lie in one extent, and are joined where they lie in several.
        """
        key = (entry.begin, window)
        parts = self._views.get(key)
        if parts is None:
            parts = self._views[key] = _views(entry, window)
        index = layer - entry.lease.split
        if len(parts) == 1:
            keys, values = parts[0]
            return keys[index], values[index]
        return (
            torch.cat([keys[index] for keys, _ in parts], dim=2),
            torch.cat([values[index] for _, values in parts], dim=2),
        )

    def _mask(self, entry: StepEntry, window: int | None) -> Tensor:
        """[T, S] bool: which positions of its history each row sees. Made once a step."""
        key = (entry.begin, window)
        mask = self._masks.get(key)
        if mask is None:
            device = self.step.arena.device
            rows = torch.arange(entry.start, entry.stop, device=device)[:, None]
            columns = torch.arange(entry.first(window), entry.stop, device=device)
            mask = columns <= rows
            if window is not None:
                mask &= columns > rows - window
            self._masks[key] = mask
        return mask


def _views(entry: StepEntry, window: int | None) -> list[_Views]:
    """The views of every extent of the history."""
    lease = entry.lease
    arena = lease.pool.arena
    row_size = arena.shape[1] * arena.shape[2]
    views = []
    for row, stride, count in lease.spans(entry.first(window), entry.stop):
        seen = arena.as_strided(
            (lease.num_layers, 1, arena.shape[1], count, arena.shape[2]),
            (stride * row_size, 0, arena.shape[2], row_size, 1),
            row * row_size,
        )
        keys, values = seen.chunk(2, dim=2)
        views.append((keys.unbind(), values.unbind()))
    return views


def _spelled_out(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scale: float,
    cap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention with soft-capped scores or with sinks, written out: no fused kernel has them.

    query, keys, values: [1, H, ., d]; sinks: broadcast to [1, H, T, 1].
    """
    scores = torch.matmul(query, keys.transpose(2, 3))
    scores = scores.mul_(scale) if cap is None else scores.mul_(scale / cap).tanh_().mul_(cap)
    if mask is not None:
        scores.masked_fill_(~mask, float("-inf"))
    if sinks is None:
        return torch.matmul(torch.softmax(scores, dim=-1), values)
    with_sinks = torch.cat([scores, sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)], dim=-1)
    return torch.matmul(torch.softmax(with_sinks, dim=-1)[..., :-1], values)

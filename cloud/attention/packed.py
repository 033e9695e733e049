"""Attention of a packed batch over the sessions' KV blocks, and its door into transformers.

transformers' layers call `packed_attention` through the attention interface (registered under
`ATTENTION_NAME`) with rotated queries and keys; which rows belong to which session travels in
the keyword argument `step`. Each session attends to its own blocks and nothing else, one kernel
call a session, so no result depends on who shares the batch. On CUDA the calls would cost more
than the work: there the histories are gathered by block table and go through one call
(`cloud.attention.gathered`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from cloud.attention.gathered import GatheredSteps
from cloud.kv.pool import KvLease

ATTENTION_NAME: Final = "splitpoint_packed"


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRows:
    """Rows of one session that are a tree of guesses, not a sequence.

    positions: [T] the position that each row stands for (rows of one depth share it).
    visible: [T][T] which of these rows each row sees, itself included. Every row sees all
    tokens before the first row. The rows take cache places start, start + 1, ... in order;
    `KvLease.keep_rows` closes up what was accepted.
    """

    positions: tuple[int, ...]
    visible: tuple[tuple[bool, ...], ...]


class StepEntry:
    """Rows [begin, end) of the packed batch: one session's cache places from `start` on.

    Views into the arena are made once a step for all layers: one call each instead of one a
    layer, which is where the time of a small model's decode step goes.
    """

    __slots__ = ("_histories", "begin", "end", "lease", "masks", "start", "tree")

    def __init__(
        self,
        lease: KvLease,
        *,
        start: int,
        begin: int,
        num_rows: int,
        tree: TreeRows | None = None,
    ) -> None:
        self.lease = lease
        self.start = start
        self.begin = begin
        self.end = begin + num_rows
        self.tree = tree
        self.masks: dict[int | None, Tensor] = {}
        self._histories: dict[int | None, list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]] = {}

    @property
    def num_rows(self) -> int:
        return self.end - self.begin

    @property
    def stop(self) -> int:
        """Cache place behind the last row."""
        return self.start + self.end - self.begin

    @property
    def positions(self) -> Sequence[int]:
        """The position of each row."""
        return range(self.start, self.stop) if self.tree is None else self.tree.positions

    def first(self, window: int | None) -> int:
        """The lowest position that any of the rows sees."""
        return 0 if window is None else max(0, self.start - window + 1)

    def history(self, layer: int, window: int | None) -> tuple[Tensor, Tensor]:
        """Keys and values of `layer` that the rows see, these rows included: [1, KV, S, d] each.

        In place where they lie in one extent, joined where they lie in several.
        """
        parts = self._histories.get(window)
        if parts is None:
            parts = self._histories[window] = self._views(window)
        index = layer - self.lease.split
        if len(parts) == 1:
            keys, values = parts[0]
            return keys[index], values[index]
        return (
            torch.cat([keys[index] for keys, _ in parts], dim=2),
            torch.cat([values[index] for _, values in parts], dim=2),
        )

    def _views(self, window: int | None) -> list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
        """For each piece of the history: the layers' keys and their values, [1, KV, S, d] each."""
        lease = self.lease
        arena = lease.pool.arena
        row_size = arena.shape[1] * arena.shape[2]
        views = []
        for row, stride, count in lease.pieces(self.first(window), self.stop):
            seen = arena.as_strided(
                (lease.num_layers, 1, arena.shape[1], count, arena.shape[2]),
                (stride * row_size, 0, arena.shape[2], row_size, 1),
                row * row_size,
            )
            keys, values = seen.chunk(2, dim=2)
            views.append((keys.unbind(), values.unbind()))
        return views


class Traits(NamedTuple):
    """How a layer attends. window: tokens a position sees, itself included (None: all of them).

    cap: scores become cap * tanh(scores / cap) (Gemma 2, arXiv:2408.00118, section 2).
    """

    scale: float
    window: int | None = None
    cap: float | None = None


class PackedStep:
    """One forward pass: its entries by split, so that those active at a layer are a prefix.

    gather: attend through gathered histories, all sessions in one call.
    """

    __slots__ = ("_singles", "active", "arena", "entries", "gather", "places", "strides", "traits")

    def __init__(self, entries: Sequence[StepEntry], *, gather: bool = False) -> None:
        self.entries = entries
        self.arena = entries[0].lease.pool.arena
        self.gather = gather
        self.active: Sequence[StepEntry] = ()  # set by the engine as layers go by
        self.traits: Traits | None = None  # what transformers asked for last
        self._singles: dict[int | None, GatheredSteps] = {}
        rows: list[int] = []
        strides: list[int] = []
        for entry in entries:
            for row, stride, count in entry.lease.pieces(entry.start, entry.stop):
                base = row - entry.lease.split * stride
                rows.extend(range(base, base + count))
                strides.extend([stride] * count)
        device = self.arena.device
        # Row t of layer l goes to arena row places[t] + l * strides[t].
        self.places = torch.tensor(rows, device=device)
        self.strides = torch.tensor(strides, device=device)

    def store(self, layer: int, keys_values: Tensor) -> None:
        """Write the active rows' keys and values of `layer`, [T, 2 KV, d], to their places."""
        count = keys_values.shape[0]
        places = torch.add(self.places[:count], self.strides[:count], alpha=layer)
        self.arena.index_copy_(0, places, keys_values)

    def singles(self, window: int | None) -> GatheredSteps:
        """The tables of the entries with one row."""
        if window not in self._singles:
            ones = [entry for entry in self.entries if entry.num_rows == 1]
            self._singles[window] = GatheredSteps(ones, window, self.arena.device)
        return self._singles[window]


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
    return attend(step, layer, heads, keys_values, step.traits)[None], None


def attend(
    step: PackedStep, layer: int, query: Tensor, keys_values: Tensor, traits: Traits
) -> Tensor:
    """Store the rows' keys and values, then attend, session by session.

    query: [T, H, d]; keys_values: [T, 2 KV, d], keys before values. Returns [T, H, d].
    """
    step.store(layer, keys_values)
    singles = [entry for entry in step.active if entry.num_rows == 1]
    if step.gather and traits.cap is None and len(singles) > 1:
        gathered = step.singles(traits.window)
        rows = gathered.rows[: len(singles)]
        out = torch.empty_like(query)
        out[rows] = gathered.attend(step.arena, layer, query[rows], traits.scale)
        for entry in step.active:
            if entry.num_rows > 1:
                mine = slice(entry.begin, entry.end)
                out[mine] = _attend_one(entry, layer, query[mine], traits)
        return out
    outputs = [
        _attend_one(entry, layer, query[entry.begin : entry.end], traits) for entry in step.active
    ]
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
    """[T, S] bool: which of the places of its history each row sees. Made once a step."""
    mask = entry.masks.get(window)
    if mask is None:
        first, start, stop = entry.first(window), entry.start, entry.stop
        rows = torch.tensor(entry.positions, device=device)[:, None]
        columns = torch.arange(first, stop, device=device)
        if entry.tree is None:
            mask = columns <= rows
        else:
            columns[start - first :] = rows[:, 0]
            mask = torch.ones((stop - start, stop - first), dtype=torch.bool, device=device)
            mask[:, start - first :] = torch.tensor(entry.tree.visible, device=device)
        if window is not None:
            mask &= columns > rows - window
        entry.masks[window] = mask
    return mask


AttentionInterface.register(ATTENTION_NAME, packed_attention)

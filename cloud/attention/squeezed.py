"""Squeezed attention in torch: rows behind a fixed context read only the keys that they select.

The reference of the compiled kernel's (`cloud/kernel/squeeze.h`), and what runs where torch
computes the layers. It takes no less time than exact attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from cloud.attention.base import AttentionTraits
from cloud.attention.in_place import InPlaceAttention
from cloud.attention.packed_step import PackedStep, StepEntry
from cloud.attention.squeezed_step import SelectingRows, SqueezedStep


class SqueezedAttention(InPlaceAttention):
    """The attention of a step in which some sessions have fixed contexts. layers: of the step."""

    name: ClassVar[str] = "squeezed"

    def __init__(self, step: PackedStep, squeezed: SqueezedStep, layers: range) -> None:
        super().__init__(step)
        self._squeezed = squeezed
        self._layers = layers
        self._selecting = {rows.entry.begin: rows for rows in squeezed.selecting}

    def attend(
        self, layer: int, entries: Sequence[StepEntry], query: Tensor, traits: AttentionTraits
    ) -> Tensor:
        """See AttentionBackend."""
        self._squeezed.keep(layer, self._layers, query)
        return super().attend(layer, entries, query, traits)

    def attend_one(
        self, layer: int, entry: StepEntry, query: Tensor, traits: AttentionTraits
    ) -> Tensor:
        """See InPlaceAttention."""
        rows = self._selecting.get(entry.begin)
        if rows is None or layer not in rows.index.places:
            return super().attend_one(layer, entry, query, traits)
        num_exact = rows.begin - entry.begin
        keys, values = (part[0] for part in self._history(layer, entry, None))  # [KV, S, d]
        selected = [
            _attend_row(query[row], rows, layer, keys[:, :stop], values[:, :stop])
            for row, stop in enumerate(range(entry.start + 1, entry.stop + 1))
            if row >= num_exact
        ]
        num_read = sum(read for _, read in selected)
        self._squeezed.count(rows, num_read, keys.shape[0])
        outputs = [out for out, _ in selected]
        if not num_exact:
            return torch.stack(outputs)
        return torch.cat(
            [super().attend_one(layer, entry, query, traits)[:num_exact], torch.stack(outputs)]
        )


def _attend_row(
    query: Tensor, rows: SelectingRows, layer: int, keys: Tensor, values: Tensor
) -> tuple[Tensor, int]:
    """One row: query [H, d], all keys and values that it could read, [KV, S, d] each.

    Returns [H, d] and how many keys of the fixed context were read, of all key-value heads.
    """
    num_kv_heads, _, dim = keys.shape
    fixed = rows.index.num_tokens
    selection = rows.index.select(layer, query)
    grouped = query.view(num_kv_heads, -1, dim)
    scores = torch.matmul(grouped, keys.transpose(1, 2)).mul_(rows.index.scales[layer])
    scores[:, :, :fixed].masked_fill_(~selection.keys[:, None], float("-inf"))
    weights = torch.softmax(torch.cat([scores, selection.scores], dim=2), dim=2)
    out = torch.matmul(weights, torch.cat([values, selection.values], dim=1))
    return out.reshape(-1, dim), int(selection.keys.sum())

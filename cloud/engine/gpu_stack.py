"""The layers of a back over a step on the device: in Triton's kernels where they are understood.

`hidden` holds every row from the start, and each kernel leaves a row alone at the layers below its
session's split. Layers of other shapes run transformers' code with paged attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from cloud.attention.base import Attend, AttentionTraits
from cloud.attention.paged import PagedStep
from cloud.engine.gpu_layer import GpuLayer
from cloud.engine.rotary import RotaryTables
from cloud.gpu.layer_kernels import RmsNorm, add, store_rows

# transformers' own layer: layer, hidden [T, D], cosine and sine [T, r], attention -> [T, D].
PlainLayer: TypeAlias = Callable[[int, Tensor, Tensor, Tensor, Attend], Tensor]


class GpuStack:
    """`layers[i]` is layer `first_layer + i`; `plain` runs those that are None."""

    def __init__(
        self,
        layers: Sequence[GpuLayer | None],
        first_layer: int,
        rotary: RotaryTables,
        plain: PlainLayer,
    ) -> None:
        self._layers = layers
        self._first_layer = first_layer
        self._rotary = rotary
        self._plain = plain

    @property
    def num_kernel_layers(self) -> int:
        """How many layers run in the kernels."""
        return sum(layer is not None for layer in self._layers)

    def run(self, hidden: Tensor, step: PagedStep, counts: Sequence[int], begin: int) -> Tensor:
        """Layers from `begin` on. hidden: [T, D], what enters, changed in place. counts: for each
        layer, how many of the first rows it has to run; they never become fewer.

        The rotary tables must reach `step.max_tokens`. Returns `hidden`.
        """
        delta: Tensor | None = None
        norm: RmsNorm | None = None
        last = 0
        for layer, count in enumerate(counts, start=begin):
            if delta is not None and (count != last or self._at(layer) is None):
                self._settle(hidden[:last], delta, norm, step, layer)
                delta = None
            rows, last = hidden[:count], count
            own = self._at(layer)
            if own is None:
                self._run_plain(layer, rows, step)
            else:
                delta = own(rows, delta, norm, step, self._rotary.table(layer))
                norm = own.after_mlp
        if delta is not None:
            self._settle(hidden[:last], delta, norm, step, begin + len(counts))
        return hidden

    def _at(self, layer: int) -> GpuLayer | None:
        return self._layers[layer - self._first_layer]

    def _settle(
        self, hidden: Tensor, delta: Tensor, norm: RmsNorm | None, step: PagedStep, layer: int
    ) -> None:
        rows = step.rows.first(hidden.shape[0])
        add(hidden, delta, rows=rows, layer=layer, after=norm)

    def _run_plain(self, layer: int, hidden: Tensor, step: PagedStep) -> None:
        rows = step.rows.first(hidden.shape[0])
        cosine, sine = self._rotary.table(layer)
        positions = rows.positions.long()

        def attend(
            index: int, query: Tensor, keys_values: Tensor, traits: AttentionTraits
        ) -> Tensor:
            store_rows(keys_values, rows=rows, layer=index)
            return step.attend(index, query, traits)

        out = self._plain(layer, hidden, cosine[positions], sine[positions], attend)
        hidden.copy_(torch.where((rows.splits <= layer)[:, None], out, hidden))

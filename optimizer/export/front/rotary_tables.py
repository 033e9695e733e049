"""Cosines and sines of positions, computed by the model's own rotary module in transformers."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from optimizer.export.front.head_layout import HeadLayout


class RotaryTable(NamedTuple):
    """float32 [N, table_width] each, rows of positions 0, 1, ..."""

    cos: Tensor
    sin: Tensor


class RotaryModule:
    """The rotary module of a decoder. Layers of one model may have different frequencies; then
    the module takes the type of a layer."""

    def __init__(self, decoder: nn.Module, config: Any) -> None:
        made: Any = type(decoder.rotary_emb)
        self._module = made(config)
        self._layer_types: tuple[str, ...] = ()
        if "layer_type" in inspect.signature(self._module.forward).parameters:
            self._layer_types = tuple(config.layer_types)

    def kind_of(self, layer: int) -> str:
        """Which of the module's tables layer `layer` uses."""
        return self._layer_types[layer] if self._layer_types else ""

    @property
    def num_pairs(self) -> int:
        """Pairs of channels that positions rotate; equal in all tables."""
        return int(next(self._module.buffers()).shape[-1])

    def table(self, kind: str, num_positions: int, layout: HeadLayout) -> RotaryTable:
        """The table of positions below `num_positions`, all of one sequence."""
        positions = torch.arange(num_positions)[None]
        arguments = (kind,) if kind else ()
        with torch.no_grad():
            cos, sin = self._module(torch.empty(0), positions, *arguments)
        fill = layout.table_width - self.num_pairs
        return RotaryTable(
            nn.functional.pad(cos[0, :, : self.num_pairs].float(), (0, fill), value=1.0),
            nn.functional.pad(sin[0, :, : self.num_pairs].float(), (0, fill)),
        )

"""Cosines and sines of every position, computed once by the model's own rotary module."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from optimizer.families import position_limit


class RotaryTables:
    """Tables by type of layer. They double in length when a longer sequence comes, up to the
    position from which the frequencies would change.

    Layers of one model may have different frequencies (Gemma 3: local and global layers). Then the
    rotary module takes the layer's type, and each type has a table.
    """

    def __init__(self, rotary: nn.Module, config: Any, dtype: torch.dtype) -> None:
        self._rotary = rotary
        self._limit = position_limit(config)
        self._dtype = dtype
        by_type = "layer_type" in inspect.signature(rotary.forward).parameters
        count = config.num_hidden_layers
        self.type_of_layer: tuple[str, ...] = (
            tuple(config.layer_types) if by_type else ("",) * count
        )
        self._tables: dict[str, tuple[Tensor, Tensor]] = {}
        self._device = next(rotary.buffers()).device
        self.version = 0  # counts how often the tables were made anew

    def table(self, layer: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine [P, r] of a layer's positions, as far as `reach` was asked for."""
        return self._tables[self.type_of_layer[layer]]

    def rows(self, positions: Tensor, num_positions: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Cosine and sine [T, d] of `positions` [T] (all below `num_positions`), by layer type."""
        self.reach(num_positions)
        return {kind: (cos[positions], sin[positions]) for kind, (cos, sin) in self._tables.items()}

    def reach(self, num_positions: int) -> None:
        """Make the tables hold so many positions."""
        have = next(iter(self._tables.values()))[0].shape[0] if self._tables else 0
        if num_positions <= have:
            return
        # The module looks at the last position: a longer table may have other frequencies.
        size = max(256, 1 << (num_positions - 1).bit_length())
        size = max(num_positions, min(size, self._limit))
        positions = torch.arange(size, device=self._device)[None]
        self.version += 1
        like = torch.empty(0, dtype=self._dtype, device=self._device)
        for kind in set(self.type_of_layer):
            cos, sin = self._rotary(like, positions, *([kind] if kind else []))
            self._tables[kind] = (cos[0].contiguous(), sin[0].contiguous())

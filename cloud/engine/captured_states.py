"""States of a step's rows at chosen layers, for what reads them: a draft head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from cloud.attention.packed_step import StepEntry
from cloud.engine.batch_entry import BatchEntry


class CapturedStates:
    """What enters the layers `layers`, kept while a step runs. The number of layers, L: what the
    last one gives."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        self._states: dict[int, Tensor] = {}

    def cuts(self, start: int, stop: int) -> set[int]:
        """The layers of [start, stop) before which a step has to pause."""
        return {layer for layer in self.layers if start <= layer < stop}

    def take(self, layer: int, hidden: Tensor) -> None:
        """The active rows [n, D] as they enter `layer`, or leave the last one."""
        if layer in self.layers:
            self._states[layer] = hidden.float().clone()

    def tell(self, entries: Sequence[StepEntry], batch: Sequence[BatchEntry]) -> None:
        """Show each entry of the batch that has a `tap` its rows' states. In the step's order."""
        for place, entry in zip(entries, batch, strict=True):
            if entry.tap is None:
                continue
            rows = slice(place.begin, place.end)
            entry.tap(torch.cat([self._states[layer][rows] for layer in self.layers], dim=-1))


NOTHING: Final = CapturedStates(())

"""Fronts of mixed precision to choose among: for several numbers of wide layers, the best such.

At every split the front with k layers at 8 bits that loses least (`optimizer.search.layer_bits`),
for k in eighths of the split. Between two of these the memory differs by an eighth of what all
layers at 8 bits would cost more, so a plan is at most that far from the best use of its memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optimizer.artifacts.geometry import ModelGeometry
from optimizer.artifacts.plan import LAYER_BITS
from optimizer.cost.weights import front_layer_bytes
from optimizer.search.layer_bits import choose_layer_bits
from optimizer.search.problem import FrontPrecision

EIGHTHS = range(1, 8)


def mixed_fronts(
    geometry: ModelGeometry, losses: Sequence[Mapping[int, float]]
) -> tuple[FrontPrecision, ...]:
    """Fronts for every split up to the number of layers with known `losses` (layer -> bits ->
    loss), short of the whole model."""
    sizes = {bits: front_layer_bytes(geometry, bits) for bits in LAYER_BITS}
    low, high = min(LAYER_BITS), max(LAYER_BITS)
    top = min(len(losses), geometry.num_layers - 1)
    fronts = []
    for eighths in EIGHTHS:
        layer_bits = {}
        for split in range(2, top + 1):
            wide = round(split * eighths / 8)
            budget = wide * sizes[high] + (split - wide) * sizes[low]
            chosen = choose_layer_bits(losses[:split], [sizes] * split, budget)
            if chosen is not None and len(set(chosen)) == 2:
                layer_bits[split] = chosen
        if layer_bits:
            fronts.append(FrontPrecision(front_bits=low, layer_bits=layer_bits))
    return tuple(fronts)

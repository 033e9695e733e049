"""Mixed precision in the front: 4 or 8 bits for each layer, the least loss within a byte budget.

An extension of one-point split compression (arXiv:2511.04002), ours: the front has one precision
there. Losses add up over layers to first order (each is small), so the choice is a multiple-choice
knapsack, solved exactly by dynamic programming over the bytes spent: of two choices for the layers
so far, one that is neither smaller nor better can never be part of the best answer, so only the
others are kept. Decoder layers mostly have equal sizes, so n layers leave at most n + 1 sums of
bytes, and the whole takes O(n^2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class _State(NamedTuple):
    """Bytes and loss of some bits for the layers so far."""

    num_bytes: float
    loss: float
    bits: tuple[int, ...]


def choose_layer_bits(
    losses: Sequence[Mapping[int, float]],
    layer_bytes: Sequence[Mapping[int, float]],
    budget_bytes: float,
) -> tuple[int, ...] | None:
    """Bits of each layer with the least sum of losses within `budget_bytes`, fewer bytes where
    the loss is equal; None when not even the smallest choice fits.

    losses, layer_bytes: for each layer, bits -> loss (any additive measure) and bits -> bytes.
    """
    front = [_State(0.0, 0.0, ())]
    rest = [min(sizes.values()) for sizes in layer_bytes]
    left = [math.fsum(rest[index + 1 :]) for index in range(len(rest))]
    for loss, sizes, needed in zip(losses, layer_bytes, left, strict=True):
        grown = [
            _State(state.num_bytes + sizes[bits], state.loss + loss[bits], (*state.bits, bits))
            for state in front
            for bits in sizes
        ]
        # What leaves too little for the smallest choice of the layers to come is no choice.
        room = budget_bytes - needed + 1e-6
        front = _undominated([state for state in grown if state.num_bytes <= room])
        if not front:
            return None
    return min(front, key=lambda state: (state.loss, state.num_bytes)).bits


def _undominated(states: list[_State]) -> list[_State]:
    kept: list[_State] = []
    for state in sorted(states, key=lambda state: (state.num_bytes, state.loss)):
        if not kept or state.loss < kept[-1].loss:
            kept.append(state)
    return kept

"""Scales for an 8-bit KV cache: one for each layer and channel, measured on text.

A value beyond its scale clips, and one clipped key spoils a whole row. So the scales come from at
least 2,048 tokens of many kinds of text (`sample_text`). With 297 tokens, SmolLM2's worst row was
22 % off at split 10, with 2,048 tokens 7 %.

`KvPeaks` takes the keys and values of one layer at a time, from whatever runs the layers, and keeps
their largest sizes only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from optimizer.errors import ModelError

# Room for values beyond the text's largest before they clip.
HEADROOM: Final = 1.15
INT8_MAX: Final = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryLayout:
    """Which channels of a head positions rotate together, as the cache holds them.

    The first `rotated` channels turn in pairs (i, i + rotated / 2).
    """

    rotated: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KvScales:
    """Steps of the 8-bit cache, by layer: [G * head_dim] floats for keys, as many for values."""

    keys: tuple[tuple[float, ...], ...]
    values: tuple[tuple[float, ...], ...]


class KvPeaks:
    """The largest keys and values of every layer over all that was added.

    Positions rotate a key's channels in pairs, so both channels of a pair get the pair's largest
    length, which no position exceeds. A value's channel gets its own largest.
    """

    def __init__(self, layout: RotaryLayout) -> None:
        self._layout = layout
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def add(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Take keys and values [..., G, T, head_dim] of one layer.

        Raises ModelError for values that are not finite.
        """
        _raise_peaks(self._keys, layer, pair_lengths(keys.float(), self._layout))
        _raise_peaks(self._values, layer, values.float().abs())

    def scales(self) -> KvScales:
        """The scales of layers 0, 1, ... in order."""
        layers = range(len(self._keys))
        return KvScales(
            keys=tuple(_scale(self._keys[layer]) for layer in layers),
            values=tuple(_scale(self._values[layer]) for layer in layers),
        )


def pair_lengths(keys: Tensor, layout: RotaryLayout) -> Tensor:
    """Length of each rotated pair, given to both of its channels; the others keep their size.

    keys: [..., head_dim].
    """
    first, second = keys[..., : layout.rotated].chunk(2, dim=-1)
    length = torch.hypot(first, second)
    return torch.cat([length, length, keys[..., layout.rotated :].abs()], -1)


def _raise_peaks(peaks: dict[int, Tensor], layer: int, sizes: Tensor) -> None:
    """Raise the layer's peaks [G, head_dim] to the sizes [..., G, T, head_dim]."""
    largest = sizes.amax(dim=-2)
    largest = largest.reshape(-1, *largest.shape[-2:]).amax(dim=0)
    if not bool(torch.isfinite(largest).all()):
        raise ModelError(
            f"layer {layer}: keys or values of a sample text are not finite; the weights are too "
            "large for float32"
        )
    peaks[layer] = torch.maximum(peaks[layer], largest) if layer in peaks else largest


def _scale(peaks: Tensor) -> tuple[float, ...]:
    """One step a channel, flattened [G * head_dim]."""
    return tuple((peaks.flatten().clamp(min=1e-6) * HEADROOM / INT8_MAX).tolist())

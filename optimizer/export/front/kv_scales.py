"""Scales for an 8-bit KV cache: one for each layer and channel, measured on a sample text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from optimizer.errors import ModelError

# A few kinds of text: prose, dialogue, code, figures. Written for this file.
SAMPLE_TEXT: Final = """\
The river had risen in the night, and by morning the lower fields were a sheet of grey water
with fence posts standing in rows like the teeth of a comb. Nobody in the village was surprised;
the older people had moved their hens to the upper yard two days before, when the swallows went.

"Did you call the insurance?" she asked. "Twice," he said. "They want photographs, a form, and
the serial number of a pump that is now under three metres of mud."

def running_mean(values, window):
    total = sum(values[:window])
    means = [total / window]
    for new, old in zip(values[window:], values):
        total += new - old
        means.append(total / window)
    return means

Quarter 1: 1,204 units, 3.7 % returned. Quarter 2: 1,377 units, 2.9 % returned. The total for
2019 was 5,118 units (EUR 408,922.50), against 4,870 in the year before.

Question: Why does ice float on water? Answer: Because water expands when it freezes, ice has a
lower density than the liquid around it, so it is pushed up until it displaces its own weight.
"""
# Room for values beyond the sample's largest before they clip.
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
        """Take keys and values [G, T, head_dim] of one layer.

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
    """Raise the layer's peaks [G, head_dim] to the sizes [G, T, head_dim]."""
    largest = sizes.amax(dim=-2)
    if not bool(torch.isfinite(largest).all()):
        raise ModelError(
            f"layer {layer}: keys or values of a sample text are not finite; the weights are too "
            "large for float32"
        )
    peaks[layer] = torch.maximum(peaks[layer], largest) if layer in peaks else largest


def _scale(peaks: Tensor) -> tuple[float, ...]:
    """One step a channel, flattened [G * head_dim]."""
    return tuple((peaks.flatten().clamp(min=1e-6) * HEADROOM / INT8_MAX).tolist())

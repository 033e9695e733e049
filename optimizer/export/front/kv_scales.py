"""Scales for an 8-bit KV cache: one for each layer and channel, measured on text.

A value beyond its scale clips, and one clipped key spoils a whole row. So the scales come from at
least 2,048 tokens of many kinds of text. With 297 tokens, SmolLM2's worst row was 22 % off at split
10, with 2,048 tokens 7 %.

`KvPeaks` takes the keys and values of one layer at a time, from whatever runs the layers, and keeps
their largest sizes only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from optimizer.errors import ModelError
from optimizer.export.front.sample_text import SAMPLE_TEXT, sample_windows

__all__ = ["SAMPLE_TEXT", "KvPeaks", "RotaryLayout", "rotary_layout", "write_kv_scales"]

# Room for values beyond the text's largest before they clip.
HEADROOM: Final = 1.15
INT8_MAX: Final = 127
TINY: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryLayout:
    """Which channels of a head positions rotate together, as the cache holds them.

    The first `rotated` channels turn in pairs: (i, i + rotated / 2), or (2 i, 2 i + 1) where they
    are `interleaved` (GLM-4, Ernie 4.5, Cohere).
    """

    rotated: int
    interleaved: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KvScales:
    """Steps of the 8-bit cache, by layer: [G * head_dim] floats for keys, as many for values."""

    keys: tuple[tuple[float, ...], ...]
    values: tuple[tuple[float, ...], ...]

    def save(self, path: Path) -> None:
        """Write the file that onnxruntime-genai's exporter reads."""
        scales = {"k_scales": self.keys, "v_scales": self.values}
        path.write_text(json.dumps({"qmax": INT8_MAX, "scales": scales}), encoding="utf-8")


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
        """Take keys and values [..., G, T, head_dim] of one layer, keys with positions or without.

        Raises ModelError for values that are not finite.
        """
        _raise_peaks(self._keys, layer, pair_lengths(keys.float(), self._layout))
        _raise_peaks(self._values, layer, values.float().abs())

    def scales(self) -> KvScales:
        """The scales of layers 0, 1, ... in order. Raises ValueError where one was never added."""
        layers = range(len(self._keys))
        if set(layers) != set(self._keys):
            raise ValueError(f"keys of layers {sorted(self._keys)} only")
        return KvScales(
            keys=tuple(_scale(self._keys[layer]) for layer in layers),
            values=tuple(_scale(self._values[layer]) for layer in layers),
        )


def rotary_layout(model: Any) -> RotaryLayout:
    """The layout of a transformers model, found by what its own rotation does."""
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    share = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None)
    rotate_half = getattr(sys.modules[type(model).__module__], "rotate_half", None)
    turned = [0.0] if rotate_half is None else rotate_half(torch.arange(4.0)).tolist()
    return RotaryLayout(
        rotated=int(head_dim * (share or 1.0)) // 2 * 2,
        interleaved=turned == [-1.0, 0.0, -3.0, 2.0],
    )


def write_kv_scales(staged: Path, out: Path, windows: Iterable[Tensor] | None = None) -> None:
    """Run the staged front over text and write the scales file that the exporter reads.

    windows: token ids [T] of a calibration text. None: the text that ships. Raises ModelError for
    values that are not finite.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(staged, dtype=torch.float32)
    if windows is None:
        tokenizer = AutoTokenizer.from_pretrained(staged)
        windows = sample_windows(tokenizer, model.config.max_position_embeddings)
    peaks = KvPeaks(rotary_layout(model))
    for ids in windows:
        add_window(peaks, model, ids)
    peaks.scales().save(out)


def add_window(peaks: KvPeaks, model: Any, ids: Tensor) -> None:
    """Run token ids [T] through a transformers model and add its layers' keys and values."""
    from transformers import DynamicCache

    from optimizer.export.calibration.hidden_states import cache_argument

    cache: Any = DynamicCache()  # keeps every token, in layers with a sliding window too
    with torch.no_grad():
        model.model(input_ids=ids[None], use_cache=True, **{cache_argument(model.model): cache})
    for layer in range(model.config.num_hidden_layers):
        peaks.add(layer, cache.layers[layer].keys, cache.layers[layer].values)


def pair_lengths(keys: Tensor, layout: RotaryLayout) -> Tensor:
    """Length of each rotated pair, given to both of its channels; the others keep their size.

    keys: [..., head_dim].
    """
    rotated, others = keys[..., : layout.rotated], keys[..., layout.rotated :]
    if layout.interleaved:
        lengths = torch.hypot(rotated[..., 0::2], rotated[..., 1::2]).repeat_interleave(2, dim=-1)
    else:
        length = torch.hypot(*rotated.chunk(2, dim=-1))
        lengths = torch.cat([length, length], -1)
    return torch.cat([lengths, others.abs()], -1)


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
    return tuple((peaks.flatten().clamp(min=TINY) * HEADROOM / INT8_MAX).tolist())

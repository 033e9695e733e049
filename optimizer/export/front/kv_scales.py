"""Scales for an 8-bit KV cache: one for each layer and channel, measured on a sample text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch

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


def write_kv_scales(staged: Path, out: Path) -> None:
    """Run the staged front over the sample and write the scales file the exporter reads.

    The rotary embedding rotates a key's channels in pairs, so both channels of a pair get the
    scale of the pair's length, which no position exceeds. A value's channel gets its own largest.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

    from optimizer.export.calibration.hidden_states import cache_argument

    tokenizer = AutoTokenizer.from_pretrained(staged)
    model = AutoModelForCausalLM.from_pretrained(staged, dtype=torch.float32)
    ids = tokenizer(SAMPLE_TEXT, return_tensors="pt").input_ids
    ids = ids[:, : model.config.max_position_embeddings]
    with torch.no_grad():
        # This kind of cache keeps every token, in layers with a sliding window too.
        cache = DynamicCache()
        model.model(input_ids=ids, use_cache=True, **{cache_argument(model.model): cache})
    layers = range(model.config.num_hidden_layers)
    share = (model.config.rope_parameters or {}).get("partial_rotary_factor") or 1.0
    scales = {
        "k_scales": [_scale(_pair_length(_cached(cache, i, "keys"), share)) for i in layers],
        "v_scales": [_scale(_cached(cache, i, "values").abs()) for i in layers],
    }
    out.write_text(json.dumps({"qmax": INT8_MAX, "scales": scales}), encoding="utf-8")


def _cached(cache: Any, layer: int, part: str) -> torch.Tensor:
    values: torch.Tensor = getattr(cache.layers[layer], part)[0]
    return values  # [G, T, head_dim]


def _pair_length(keys: torch.Tensor, share: float) -> torch.Tensor:
    """Length of each rotated pair (i, i + R / 2), given to both, R the rotated channels of a head.

    keys: [G, T, head_dim], of which the first `share` are rotated. The others keep their size.
    """
    rotated = int(keys.shape[-1] * share)
    first, second = keys[..., :rotated].chunk(2, dim=-1)
    return torch.cat([torch.hypot(first, second).repeat(1, 1, 2), keys[..., rotated:].abs()], -1)


def _scale(magnitudes: torch.Tensor) -> list[float]:
    """One scale a channel, flattened [G * head_dim]."""
    largest = magnitudes.amax(dim=1).flatten().clamp(min=1e-6)
    scales: list[float] = (largest * HEADROOM / INT8_MAX).tolist()
    return scales

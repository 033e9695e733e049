"""The positions of a GGUF file as transformers' `rope_parameters`.

transformers drops `*.rope.scaling.*` and the factor tensors when it reads a GGUF config. Without
them a model is right on short texts only, or on none. llama.cpp's meaning of each key is in its
`llama_model::load_hparams` and `ggml_rope_ext`.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from optimizer.errors import ModelError
from optimizer.export.sources.gguf_files import GgufFiles

FREQUENCY_FACTORS: Final = "rope_freqs.weight"  # divisors of the rotary frequencies
LONG_FACTORS: Final = "rope_factors_long.weight"
SHORT_FACTORS: Final = "rope_factors_short.weight"
FACTOR_TENSORS: Final = (FREQUENCY_FACTORS, LONG_FACTORS, SHORT_FACTORS)
DEFAULT_BASE: Final = 10000.0
# Llama 3's own scalings, which converters write out as factors: (factor, low, high, original).
_LLAMA3: Final = (8.0, 32.0, 16.0, 4.0, 2.0)
_LLAMA3_LOW: Final = 1.0
_LLAMA3_HIGH: Final = 4.0
_LLAMA3_ORIGINAL: Final = 8192

Rope = dict[str, Any]


def rope_of(files: GgufFiles, head_dim: int, context_length: int) -> Rope:
    """The `rope_parameters` of all layers that do not have others (see `local_rope_of`).

    Raises ModelError for a kind of scaling that transformers does not compute.
    """
    base = float(files.own_fact("rope.freq_base") or DEFAULT_BASE)
    rope: Rope = {"rope_type": "default", "rope_theta": base}
    rotated = int(files.own_fact("rope.dimension_count") or head_dim)
    if rotated != head_dim:
        if not 0 < rotated < head_dim or rotated % 2:
            raise ModelError(f"{files.path}: rotates {rotated} of {head_dim} channels of a head")
        rope["partial_rotary_factor"] = rotated / head_dim
    rope |= _scaling(files, context_length)
    factors = _factors(files, FREQUENCY_FACTORS, rotated)
    if factors is not None and not np.all(factors == 1):
        if rope["rope_type"] != "default":
            raise ModelError(
                f"{files.path}: has {FREQUENCY_FACTORS} and {rope['rope_type']} scaling at once, "
                "which is not read; use the model's safetensors folder"
            )
        rope |= _from_factors(factors, base, context_length)
    return rope


def local_rope_of(files: GgufFiles) -> Rope:
    """The `rope_parameters` of Gemma 3's layers with a sliding window: never scaled."""
    base = files.own_fact("rope.freq_base_swa") or DEFAULT_BASE
    return {"rope_type": "default", "rope_theta": float(base)}


def _scaling(files: GgufFiles, context_length: int) -> Rope:
    kind = files.own_fact("rope.scaling.type")
    factor = float(
        files.own_fact("rope.scaling.factor") or files.own_fact("rope.scale_linear") or 1
    )
    original = int(files.own_fact("rope.scaling.original_context_length") or 0)
    attention = files.own_fact("rope.scaling.attn_factor")
    if LONG_FACTORS in files.tensors or kind == "longrope":
        return _longrope(files, original or context_length, context_length, attention)
    if kind == "none" or factor == 1:
        return {}
    if kind in (None, "linear"):
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and files.own_fact("rope.scaling.yarn_log_multiplier") is None:
        rope: Rope = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original or round(context_length / factor),
        }
        for key in ("beta_fast", "beta_slow"):
            value = files.own_fact(f"rope.scaling.yarn_{key}")
            if value is not None:
                rope[key] = float(value)
        if attention is not None:
            rope["attention_factor"] = float(attention) * (0.1 * math.log(factor) + 1)
        return rope
    raise ModelError(
        f"{files.path}: has positions of kind {kind!r:.40}, which are not read from GGUF; "
        "use the model's safetensors folder"
    )


def _longrope(files: GgufFiles, original: int, context_length: int, attention: Any) -> Rope:
    head_dim = int(files.own_fact("rope.dimension_count") or 0)
    long, short = (_factors(files, name, head_dim) for name in (LONG_FACTORS, SHORT_FACTORS))
    if long is None or short is None:
        raise ModelError(
            f"{files.path}: has longrope positions and no {LONG_FACTORS} or no {SHORT_FACTORS}; "
            "convert or fetch the model again"
        )
    rope: Rope = {
        "rope_type": "longrope",
        "short_factor": [float(value) for value in short],
        "long_factor": [float(value) for value in long],
        "factor": context_length / original,
        "original_max_position_embeddings": original,
    }
    if attention is not None:
        rope["attention_factor"] = float(attention)
    return rope


def _from_factors(
    factors: np.ndarray[Any, np.dtype[np.float32]], base: float, context_length: int
) -> Rope:
    """Llama 3's parameters where they give these factors, else the factors as they are."""
    for factor in _LLAMA3:
        rope: Rope = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": _LLAMA3_LOW,
            "high_freq_factor": _LLAMA3_HIGH,
            "original_max_position_embeddings": _LLAMA3_ORIGINAL,
        }
        if np.allclose(llama3_factors(len(factors), base, factor), factors, rtol=1e-4, atol=0):
            return rope
    listed = [float(value) for value in factors]
    return {
        "rope_type": "longrope",
        "short_factor": listed,
        "long_factor": listed,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": context_length,
    }


def llama3_factors(count: int, base: float, factor: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What Llama 3's scaling divides each of `count` frequencies by. Source: Meta's code."""
    wavelengths = 2 * np.pi * base ** (np.arange(count) / count)
    turns = _LLAMA3_ORIGINAL / wavelengths
    smooth = np.clip((turns - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth))


def _factors(
    files: GgufFiles, name: str, rotated: int
) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """One tensor of factors; ModelError where its length is not that of the frequencies."""
    if name not in files.tensors:
        return None
    factors = files.values(name).reshape(-1)
    if (rotated and len(factors) != rotated // 2) or not np.all(factors > 0):
        raise ModelError(
            f"{files.path}: {name} must hold {rotated // 2} factors above 0; fetch the model again"
        )
    return factors

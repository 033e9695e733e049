"""Checkpoints whose weights are codes and scales: how they are recognised, or refused by name.

A build reads plain float weights, and those that `packed` makes of codes and scales. Codes without
their scales are numbers too, so a build that took them would run and say nonsense.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from optimizer.errors import ModelError
from optimizer.export.sources.packed.assembly import PackedFormat
from optimizer.export.sources.packed.registry import format_of

# The words of a safetensors header for types that hold plain weights.
PLAIN_TYPES: Final = ("F64", "F32", "F16", "BF16")
# Keys of a config that tell of quantization.
SECTIONS: Final = ("quantization_config", "compression_config")
# By the last part of a tensor's name: which methods write it.
_METHOD_OF_SUFFIX: Final[Mapping[str, str]] = {
    "weight_scale_inv": "fp8",
    "weight_scale": "fp8 or compressed-tensors",
    "weight_scale_2": "modelopt",
    "weight_global_scale": "compressed-tensors",
    "input_scale": "fp8 or compressed-tensors",
    "input_global_scale": "compressed-tensors",
    "activation_scale": "fp8",
    "k_scale": "an 8-bit cache",
    "v_scale": "an 8-bit cache",
    "weight_packed": "compressed-tensors",
    "weight_shape": "compressed-tensors",
    "weight_zero_point": "compressed-tensors",
    "weight_g_idx": "compressed-tensors",
    "qweight": "gptq or awq",
    "qzeros": "gptq or awq",
    "scales": "gptq, awq or mxfp4",
    "biases": "mlx",
    "g_idx": "gptq",
    "absmax": "bitsandbytes",
    "nested_absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "nested_quant_map": "bitsandbytes",
    "SCB": "bitsandbytes",
    "weight_format": "bitsandbytes",
    "codebooks": "aqlm",
    "codes": "aqlm",
    "q_weight": "exl2",
    "trellis": "exl3",
    "W_q": "hqq",
    "int8": "a Splitpoint bundle",
    "scale": "a Splitpoint bundle",
}
_CURE: Final = (
    "config.json does not say how; use the files of one checkpoint, or a dequantized one "
    "(float32, float16 or bfloat16 weights)"
)


def packed_format_of(config: Mapping[str, Any], path: Path) -> PackedFormat | None:
    """How the weights are packed, as the config.json at `path` tells; None where they are plain.

    Raises ModelError, with the method's name, for a method that is not read.
    """
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        for key in SECTIONS:
            if part.get(key):
                section = part[key] if isinstance(part[key], dict) else {}
                return format_of(_method_of(section), section, f"{path}: {key}")
    return None


def refuse_quantized_tensor(origin: str, name: str, dtype: str) -> None:
    """Raises ModelError for a tensor of a type that holds codes.

    origin: file and tensor. dtype: the word of the file's format.
    """
    if dtype not in PLAIN_TYPES:
        method = quantization_of(name) or dtype
        raise ModelError(
            f"{origin} has type {dtype}: the weights are quantized ({method}); {_CURE}"
        )


def refuse_quantization_part(origin: str, name: str) -> None:
    """Raises ModelError for a tensor that some quantization method keeps beside its codes."""
    if method := quantization_of(name):
        raise ModelError(f"{origin}: the weights are quantized ({method}); {_CURE}")


def quantization_of(name: str) -> str | None:
    """The method that writes tensors of this name; None for an ordinary name."""
    if ".quant_state." in name:
        return "bitsandbytes"
    last = name.rpartition(".")[2]
    if last.endswith(("_blocks", "_scales")):
        return "mxfp4"
    return _METHOD_OF_SUFFIX.get(last)


def _method_of(section: Mapping[str, Any]) -> str:
    if section.get("load_in_4bit") or section.get("load_in_8bit"):
        return "bitsandbytes"
    return str(section.get("quant_method") or section.get("quant_algo") or "unknown method")[:40]

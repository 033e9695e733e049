"""Give a module that was built on the meta device its weights, as the server is to hold them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cloud.engine.int4_linear import Int4Linear, to_int4, why_no_int4
from cloud.engine.int8_experts import Int8Experts, gated_by
from cloud.engine.int8_linear import DequantizedLinear, int8_linear
from cloud.engine.tensor_files import CODES_SUFFIX, SCALE_SUFFIX, TensorFiles
from cloud.engine.weight_only_linear import (
    FP8_TYPE,
    WeightOnlyLinear,
    to_fp8,
    to_int8,
    why_no_weight_only,
)
from cloud.engine.weight_types import BF16, FP8, INT4, INT8, WEIGHT_TYPES
from cloud.errors import WeightsError
from optimizer.export.back import is_coded


def check_weight_type(weights: str | None, device: torch.device) -> None:
    """Raise WeightsError for a type of weights that there is not, or not on this device."""
    if weights is None:
        return
    if weights not in WEIGHT_TYPES:
        raise WeightsError(f"weights {weights}: choose one of {', '.join(WEIGHT_TYPES)}")
    if weights == BF16:
        return
    if weights == INT4:
        reason = why_no_int4(device)
    else:
        reason = why_no_weight_only(device, FP8_TYPE if weights == FP8 else torch.int8)
    if reason is not None:
        raise WeightsError(f"weights {weights} cannot be used here: {reason}")


def fill_module(
    module: nn.Module,
    prefix: str,
    tensors: TensorFiles,
    dtype: torch.dtype,
    weights: str | None = None,
) -> nn.Module:
    """Give a meta module its weights; linear layers of few bits replace its own where it has them.

    prefix: of the tensors' names. dtype: what it computes in. weights: what its linear layers hold
    (`weight_types`; None: what is stored). Norms, routers and experts stay as they are stored.
    Raises WeightsError.
    """
    for name, child in list(module.named_modules()):
        if not isinstance(child, nn.Linear):
            continue
        made = _linear(child, _join(prefix, name), tensors, dtype, weights)
        if made is not None:
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, made)
    for name, child in list(module.named_modules()):
        if _join(prefix, name, "gate_up_proj") + CODES_SUFFIX in tensors:
            parent, _, attribute = name.rpartition(".")
            experts = _int8_experts(child, _join(prefix, name), tensors, dtype)
            setattr(module.get_submodule(parent), attribute, experts)
    for name, parameter in list(module.named_parameters()):
        if not parameter.is_meta:
            continue
        tensor = tensors.need(_join(prefix, name), tuple(parameter.shape)).to(dtype)
        parent, _, attribute = name.rpartition(".")
        owner = module.get_submodule(parent)
        setattr(owner, attribute, nn.Parameter(tensor, requires_grad=False))
    leftover = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    if leftover:
        raise WeightsError(f"{prefix}: buffers without a value: {', '.join(leftover)}")
    return module


def _linear(
    blank: nn.Linear, name: str, tensors: TensorFiles, dtype: torch.dtype, weights: str | None
) -> nn.Module | None:
    """The layer that replaces `blank`; None where it keeps a weight of `dtype`."""
    full = f"{name}.weight"
    shape = tuple(blank.weight.shape)
    is_stored_coded = full + CODES_SUFFIX in tensors
    narrow = weights if weights in (FP8, INT8, INT4) else None
    if not is_stored_coded and not (narrow and is_coded(full, len(shape))):
        return None
    bias = None
    if blank.bias is not None:
        bias = tensors.need(f"{name}.bias", shape[:1]).float()
    if narrow and not is_stored_coded:
        return narrow_linear(tensors.need(full, shape), narrow, bias)
    codes = tensors.need(full + CODES_SUFFIX, shape)
    scale = tensors.need(full + SCALE_SUFFIX, shape[:1]).float()
    if codes.dtype != torch.int8:
        raise WeightsError(f"{full}{CODES_SUFFIX} has dtype {codes.dtype}, expected int8")
    if weights == BF16:
        return DequantizedLinear(codes, scale, bias, dtype)
    if weights == INT8:
        return WeightOnlyLinear(codes, scale, bias)
    if narrow:
        return narrow_linear(codes.float() * scale[:, None], narrow, bias)
    return int8_linear(codes, scale, bias, dtype)


def narrow_linear(weight: Tensor, weights: str, bias: Tensor | None) -> nn.Module:
    """A linear layer that holds this matrix [N, K] as FP8, INT8 or INT4."""
    if weights == INT4:
        return Int4Linear(*to_int4(weight), bias, width=weight.shape[1])
    convert = to_fp8 if weights == FP8 else to_int8
    return WeightOnlyLinear(*convert(weight), bias)


def _int8_experts(module: Any, prefix: str, tensors: TensorFiles, dtype: torch.dtype) -> nn.Module:
    """A layer's experts from codes [E, N, K], scales [E, N] and biases [E, N]."""
    layers: dict[str, list[nn.Module]] = {}
    for part in ("gate_up_proj", "down_proj"):
        full = f"{prefix}.{part}"
        shape = tuple(getattr(module, part).shape)
        codes = tensors.need_codes(full + CODES_SUFFIX, shape)
        scale = tensors.need(full + SCALE_SUFFIX, tuple(codes.shape[:2])).float()
        bias = [None] * len(codes)
        if hasattr(module, f"{part}_bias"):
            bias = list(tensors.need(f"{full}_bias", tuple(codes.shape[:2])).float())
        layers[part] = [int8_linear(*one, dtype) for one in zip(codes, scale, bias, strict=True)]
    return Int8Experts(gated_by(module), layers["gate_up_proj"], layers["down_proj"])


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)

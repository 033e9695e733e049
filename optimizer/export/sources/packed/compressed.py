"""Compressed-tensors checkpoints (llm-compressor): packed integers, plain integers, 8-bit floats.

A linear STEM of K inputs and N outputs, signed codes q, G groups of inputs:

    pack-quantized    STEM.weight_packed      int32 [N, ceil(K / P)], q + 2^(bits - 1), P a word
                      STEM.weight_shape       int64 [2]: N, K
                      STEM.weight_scale       float [N, G]
                      STEM.weight_zero_point  int32 [ceil(N / P), G] packed along N, or int8 [N, G]
                      STEM.weight_g_idx       int32 [K]: the group of each input
    int-quantized     STEM.weight             int8 [N, K], with scale and zero point [N, G]
    float-quantized   STEM.weight             float8 [N, K], with scale [N, G], [1] or by blocks

Scales of activations, which a build does not quantize, are left out. Source: the package
`compressed-tensors`, its `compressors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from optimizer.errors import ModelError
from optimizer.export.sources.packed.assembly import (
    AssembledTensor,
    Assembly,
    RawReader,
    check_shape,
    part_of,
    weight_like,
)
from optimizer.export.sources.packed.matrix_grid import MatrixGrid, even_groups, unpacked
from optimizer.export.sources.packed.scaled import FLOAT8, scaled_tensor
from optimizer.export.sources.safetensors_header import StoredTensor

PACKED_BITS: Final = (4, 8)
_READ_FORMATS: Final = (
    "pack-quantized",
    "naive-quantized",
    "int-quantized",
    "float-quantized",
    "mixed-precision",
    "dense",
)
# Scales and zero points of activations and of the KV cache.
ACTIVATION_PARTS: Final = (
    "input_scale",
    "input_zero_point",
    "output_scale",
    "output_zero_point",
    "input_g_idx",
    "k_scale",
    "v_scale",
    "k_zero_point",
    "v_zero_point",
    "q_scale",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedFormat:
    """See the module. block: rows and columns that share a scale, where the config names them."""

    kind: str
    block: tuple[int, int] | None

    @property
    def name(self) -> str:
        """See PackedFormat."""
        return f"compressed-tensors, {self.kind}"

    def assemble(self, stored: Mapping[str, StoredTensor], raw: RawReader) -> Assembly:
        """See PackedFormat."""
        weights: dict[str, AssembledTensor] = {}
        used: set[str] = set()
        left_out = tuple(n for n in stored if n.rpartition(".")[2] in ACTIVATION_PARTS)
        for name, tensor in stored.items():
            stem, _, last = name.rpartition(".")
            if last == "weight_packed":
                parts = _packed_parts(stored, stem)
                shape = _shape_of(parts, raw)
                weights[f"{stem}.weight"] = _unpacking(stem, parts, shape, raw)
            elif last == "weight" and f"{stem}.weight_scale" in stored:
                parts = {"weight": tensor, "weight_scale": stored[f"{stem}.weight_scale"]}
                if f"{stem}.weight_zero_point" in stored:
                    parts["weight_zero_point"] = stored[f"{stem}.weight_zero_point"]
                weights[name] = _scaling(stem, parts, self.block, raw)
            else:
                continue
            used.update(f"{stem}.{part}" for part in parts)
        return Assembly(weights=weights, used=frozenset(used), left_out=left_out)


def compressed_format(settings: Mapping[str, Any], where: str) -> CompressedFormat:
    """The format that a config's section describes. Raises ModelError for what is not read."""
    groups = settings.get("config_groups") or {}
    groups = [group for group in groups.values() if isinstance(group, dict)]
    kinds = {str(group["format"]) for group in groups if group.get("format")}
    kinds.add(str(settings.get("format") or "dense"))
    for kind in sorted(kinds):
        if kind not in _READ_FORMATS:
            raise ModelError(
                f"{where}: compressed-tensors' format {kind!r:.40} is not read; "
                f"{', '.join(_READ_FORMATS[:4])} are"
            )
    sparsity = settings.get("sparsity_config") or {}
    if isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense":
        raise ModelError(f"{where}: compressed-tensors with sparse weights is not read")
    transforms = settings.get("transform_config") or {}
    if isinstance(transforms, dict) and transforms.get("config_groups"):
        raise ModelError(f"{where}: compressed-tensors with rotated weights is not read")
    weights = [group.get("weights") or {} for group in groups]
    blocks = {tuple(found["block_structure"]) for found in weights if found.get("block_structure")}
    if len(blocks) > 1 or any(len(block) != 2 for block in blocks):
        raise ModelError(f"{where}: compressed-tensors with several kinds of blocks is not read")
    shown = sorted(kinds - {"dense", "mixed-precision"}) or ["dense"]
    return CompressedFormat(kind=", ".join(shown), block=next(iter(blocks), None))


def _packed_parts(stored: Mapping[str, StoredTensor], stem: str) -> dict[str, StoredTensor]:
    wanted = ("weight_packed", "weight_scale", "weight_shape")
    parts = {part: part_of(stored, stem, part) for part in wanted}
    for part in ("weight_zero_point", "weight_g_idx"):
        if f"{stem}.{part}" in stored:
            parts[part] = stored[f"{stem}.{part}"]
    return parts


def _shape_of(parts: Mapping[str, StoredTensor], raw: RawReader) -> tuple[int, int]:
    """[N, K] as the checkpoint states it."""
    check_shape(parts["weight_shape"], (2,), "pack-quantized")
    outputs, inputs = (int(size) for size in raw(parts["weight_shape"]))
    packed = parts["weight_packed"]
    if packed.dtype != "I32" or len(packed.shape) != 2 or packed.shape[0] != outputs:
        raise ModelError(f"{packed.origin}: not int32 words of {outputs} rows")
    return outputs, inputs


def _bits_of(packed: StoredTensor, inputs: int) -> int:
    for bits in PACKED_BITS:
        if -(-inputs * bits // 32) == packed.shape[1]:
            return bits
    raise ModelError(
        f"{packed.origin}: {packed.shape[1]} words for {inputs} inputs are neither 4 nor 8 bits, "
        "which are read"
    )


def _unpacking(
    stem: str, parts: Mapping[str, StoredTensor], shape: tuple[int, int], raw: RawReader
) -> AssembledTensor:
    outputs, inputs = shape
    packed, scale = parts["weight_packed"], parts["weight_scale"]
    bits = _bits_of(packed, inputs)
    groups = scale.shape[-1] if len(scale.shape) == 2 else 1
    if scale.shape not in ((outputs, groups), (1,), ()) or not 0 < groups <= inputs:
        raise ModelError(f"{scale.origin} has shape {list(scale.shape)}: no scale for each group")
    if "weight_g_idx" in parts:
        check_shape(parts["weight_g_idx"], (inputs,), "pack-quantized")

    def grid() -> MatrixGrid:
        if "weight_g_idx" in parts:
            group_of = raw(parts["weight_g_idx"]).to(torch.int64)
            if bool((group_of < 0).any()) or bool((group_of >= groups).any()):
                raise ModelError(f"{parts['weight_g_idx'].origin}: names a group that is not there")
        else:
            group_of = even_groups(inputs, groups)
        middle = 1 << (bits - 1)
        zeros = torch.full((outputs, groups), middle, dtype=torch.int16)
        if "weight_zero_point" in parts:
            zeros = _zeros(parts["weight_zero_point"], raw, bits, (outputs, groups))
        scales = raw(scale).to(torch.float32)
        return MatrixGrid(
            bits=bits,
            codes=unpacked(raw(packed), bits)[:, :inputs].contiguous(),
            scales=scales.reshape(-1, groups).expand(outputs, groups).contiguous(),
            zeros=zeros,
            group_of=group_of,
        )

    return AssembledTensor(
        stored=weight_like(packed, stem, shape), read=lambda: grid().weight(), grid=grid
    )


def _zeros(stored: StoredTensor, raw: RawReader, bits: int, shape: tuple[int, int]) -> Tensor:
    """Zero points int16 [N, G] among the unsigned codes."""
    outputs, groups = shape
    if stored.dtype == "I32" and stored.shape == (-(-outputs * bits // 32), groups):
        codes = unpacked(raw(stored).T.contiguous(), bits)[:, :outputs]
        return codes.T.to(torch.int16).contiguous()
    if stored.dtype == "I8" and stored.shape in (shape, (1,)):
        signed = raw(stored).to(torch.int16) + (1 << (bits - 1))
        return signed.expand(shape).contiguous()
    raise ModelError(f"{stored.origin}: {stored.dtype} {list(stored.shape)} are no zero points")


def _scaling(
    stem: str,
    parts: Mapping[str, StoredTensor],
    block: tuple[int, int] | None,
    raw: RawReader,
) -> AssembledTensor:
    """An int8 or float8 matrix with scales beside it."""
    codes, scale = parts["weight"], parts["weight_scale"]
    if codes.dtype == "I8" and len(codes.shape) == 2 and block is None:
        return _integers(stem, parts, raw)
    if codes.dtype not in FLOAT8 or "weight_zero_point" in parts:
        raise ModelError(
            f"{codes.origin} has type {codes.dtype} and scales beside it, which is not read"
        )
    return scaled_tensor(stem, codes, scale, raw, block=block)


def _integers(stem: str, parts: Mapping[str, StoredTensor], raw: RawReader) -> AssembledTensor:
    codes, scale = parts["weight"], parts["weight_scale"]
    outputs, inputs = codes.shape
    groups = scale.shape[-1] if len(scale.shape) == 2 else 1
    if scale.shape not in ((outputs, groups), (outputs,), (1,), ()) or inputs % groups:
        raise ModelError(f"{scale.origin} has shape {list(scale.shape)}: no scale for each group")

    def grid() -> MatrixGrid:
        zeros = torch.full((outputs, groups), 128, dtype=torch.int16)
        if "weight_zero_point" in parts:
            zeros = _zeros(parts["weight_zero_point"], raw, 8, (outputs, groups))
        scales = raw(scale).to(torch.float32).reshape(-1, groups)
        return MatrixGrid(
            bits=8,
            codes=(raw(codes).to(torch.int16) + 128).to(torch.uint8),
            scales=scales.expand(outputs, groups).contiguous(),
            zeros=zeros,
            group_of=even_groups(inputs, groups),
        )

    return AssembledTensor(
        stored=weight_like(codes, stem, (outputs, inputs)),
        read=lambda: grid().weight(),
        grid=grid,
    )

"""8-bit floats with scales: weights that are one product away.

    weight[n, k] = codes[n, k] * scale

with one scale for the matrix, for each output, or for each block of B x C weights (DeepSeek's fp8:
`weight_scale_inv`, 128 x 128; the last blocks may be cut).
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
    weight_like,
)
from optimizer.export.sources.safetensors_header import StoredTensor

FLOAT8: Final = ("F8_E4M3", "F8_E5M2")
_SCALES: Final = ("weight_scale_inv", "weight_scale")
_LEFT_OUT: Final = ("input_scale", "activation_scale", "input_scale_ub", "k_scale", "v_scale")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Format:
    """See the module. block: rows and columns of a block; None: no blocks."""

    method: str
    block: tuple[int, int] | None

    @property
    def name(self) -> str:
        """See PackedFormat."""
        return self.method

    def assemble(self, stored: Mapping[str, StoredTensor], raw: RawReader) -> Assembly:
        """See PackedFormat."""
        weights: dict[str, AssembledTensor] = {}
        used: set[str] = set()
        for name, tensor in stored.items():
            stem, _, last = name.rpartition(".")
            scale = next((s for s in _SCALES if f"{stem}.{s}" in stored), None)
            if last != "weight" or scale is None:
                continue
            if tensor.dtype not in FLOAT8:
                raise ModelError(f"{tensor.origin} has type {tensor.dtype}, and a {scale}")
            scales = stored[f"{stem}.{scale}"]
            weights[name] = scaled_tensor(stem, tensor, scales, raw, block=self.block)
            used.update((name, f"{stem}.{scale}"))
        left_out = tuple(n for n in stored if n.rpartition(".")[2] in _LEFT_OUT)
        return Assembly(weights=weights, used=frozenset(used), left_out=left_out)


def fp8_format(settings: Mapping[str, Any], where: str) -> Fp8Format:
    """The format that a config's section describes. Raises ModelError for what is not read."""
    block = settings.get("weight_block_size")
    if block is not None and (
        not isinstance(block, list) or len(block) != 2 or any(not _is_size(n) for n in block)
    ):
        raise ModelError(f"{where}: weight_block_size must be two sizes, not {block!r:.40}")
    return Fp8Format(
        method=str(settings.get("quant_method")),
        block=None if block is None else (int(block[0]), int(block[1])),
    )


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def scaled_tensor(
    stem: str,
    codes: StoredTensor,
    scale: StoredTensor,
    raw: RawReader,
    *,
    block: tuple[int, int] | None,
) -> AssembledTensor:
    """The weight STEM.weight of float8 codes [N, K] and a scale.

    block: rows and columns that share a scale, where the scales lie in blocks. Raises ModelError
    for scales of another shape.
    """
    if len(codes.shape) != 2:
        raise ModelError(f"{codes.origin} has shape {list(codes.shape)}: not a matrix")
    outputs, inputs = codes.shape
    shapes: list[tuple[int, ...]] = [(), (1,), (1, 1), (outputs,), (outputs, 1)]
    if block is not None:
        shapes = [(-(-outputs // block[0]), -(-inputs // block[1]))]
    if scale.shape not in shapes:
        asked = " or ".join(str(list(shape)) for shape in shapes)
        raise ModelError(f"{scale.origin} has shape {list(scale.shape)}, expected {asked}")

    def read() -> Tensor:
        weight = raw(codes).to(torch.float32)
        scales = raw(scale).to(torch.float32)
        if block is not None:
            rows, columns = block
            for index in range(scales.shape[0]):
                part = scales[index].repeat_interleave(columns)[:inputs]
                weight[index * rows : (index + 1) * rows] *= part
            return weight
        return weight.mul_(scales.reshape(-1, 1))

    return AssembledTensor(stored=weight_like(codes, stem, (outputs, inputs)), read=read)

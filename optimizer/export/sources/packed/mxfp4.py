"""MXFP4, as gpt-oss stores its experts: blocks of 32 values of 4 bits with one power of two each.

STEM_blocks uint8 [E, N, K / 32, 16] and STEM_scales uint8 [E, N, K / 32] -> STEM float32 [E, K, N]

Two values a byte, the lower half first; a value is one of E2M1's sixteen, times 2^(scale - 127).
Source: OCP Microscaling Formats (MX) Specification 1.0. All values are exact in bfloat16.
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
)
from optimizer.export.sources.safetensors_header import StoredTensor

_VALUES: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_BLOCKS, _SCALES = "_blocks", "_scales"
_BYTES_A_BLOCK: Final = 16
_EXPONENT_BIAS: Final = 127


def mxfp4_format(settings: Mapping[str, Any], where: str) -> Mxfp4Format:
    """The format; settings name only what stays unpacked, which the files show."""
    return Mxfp4Format()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mxfp4Format:
    """See the module's docstring."""

    name: str = "mxfp4"

    def assemble(self, stored: Mapping[str, StoredTensor], raw: RawReader) -> Assembly:
        """See PackedFormat."""
        weights: dict[str, AssembledTensor] = {}
        used: set[str] = set()
        for name, blocks in stored.items():
            if not name.endswith(_BLOCKS):
                continue
            stem = name.removesuffix(_BLOCKS)
            scales = stored.get(stem + _SCALES)
            if scales is None:
                raise ModelError(
                    f"{blocks.file}: the tensor {stem}{_SCALES} is missing; "
                    "the download is incomplete"
                )
            weights[stem] = _assembled(stem, blocks, scales, raw)
            used |= {name, stem + _SCALES}
        return Assembly(weights=weights, used=frozenset(used))


def _assembled(
    stem: str, blocks: StoredTensor, scales: StoredTensor, raw: RawReader
) -> AssembledTensor:
    if len(blocks.shape) != 4 or blocks.shape[3] != _BYTES_A_BLOCK or blocks.dtype != "U8":
        raise ModelError(f"{blocks.origin}: not blocks of {_BYTES_A_BLOCK} bytes; fetch it again")
    check_shape(scales, blocks.shape[:3], "its blocks'")
    experts, outputs, count, _ = blocks.shape
    inputs = 2 * _BYTES_A_BLOCK * count

    def read() -> Tensor:
        return unpacked(raw(blocks), raw(scales)).transpose(1, 2).contiguous()

    return AssembledTensor(
        stored=StoredTensor(
            file=blocks.file,
            name=stem,
            dtype="F32",
            shape=(experts, inputs, outputs),
            num_bytes=blocks.num_bytes + scales.num_bytes,
        ),
        read=read,
    )


def unpacked(blocks: Tensor, scales: Tensor) -> Tensor:
    """Values float32 [E, N, K] of blocks uint8 [E, N, K / 32, 16] and scales uint8 [E, N, K / 32].

    A scale of 255 is "not a number" and makes its block so, which the finite check reports.
    """
    signed = torch.tensor([*_VALUES, *(-value for value in _VALUES)])
    pairs = torch.stack([signed[(blocks & 15).long()], signed[(blocks >> 4).long()]], dim=-1)
    exponents = scales.to(torch.int32) - _EXPONENT_BIAS
    factors = torch.exp2(exponents.float())
    factors[scales == 255] = torch.nan
    return (pairs.flatten(3) * factors[..., None]).flatten(2)

"""A weight matrix as codes, scales and zero points: what most quantized checkpoints hold.

    weight[n, k] = scales[n, g] * (codes[n, k] - zeros[n, g]),   g = group_of[k]

The product of a code and a 16-bit scale is exact in float32, so unpacking adds no error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

BLOCK_SIZE: Final = 32  # of MatMulNBits in our fronts
FRONT_BITS: Final = (4, 8)
_WORD_BITS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedMatrix:
    """A matrix [N, K] (outputs by inputs) on a grid that MatMulNBits takes over as it is.

    codes: uint8 [N, K], one a byte; scales: float32 [N, K / B]; zeros: uint8 [N, K / B]. A weight
    is scale * (code - zero) of its block of B inputs: 32, or more where `joined_blocks` made it.
    """

    bits: int
    codes: Tensor
    scales: Tensor
    zeros: Tensor

    def by_rows(self, reorder: Callable[[Tensor], Tensor]) -> QuantizedMatrix:
        """The same grid with rows chosen, reordered or added: `reorder` gets [N, .] tensors.

        A row of zeros stands for weights of zero.
        """
        return QuantizedMatrix(
            bits=self.bits,
            codes=reorder(self.codes),
            scales=reorder(self.scales),
            zeros=reorder(self.zeros),
        )

    def scaled(self, factor: float) -> QuantizedMatrix:
        """All weights times `factor`."""
        return replace(self, scales=self.scales * factor)

    def joined_blocks(self) -> QuantizedMatrix | None:
        """The same grid in blocks of twice as many inputs; None where two neighbours differ."""
        count = self.scales.shape[1]
        if count % 2:
            return None
        scales, zeros = (part.view(len(part), -1, 2) for part in (self.scales, self.zeros))
        if any(not torch.equal(part[..., 0], part[..., 1]) for part in (scales, zeros)):
            return None
        return replace(self, scales=scales[..., 0].contiguous(), zeros=zeros[..., 0].contiguous())

    @staticmethod
    def joined(parts: Sequence[QuantizedMatrix | None]) -> QuantizedMatrix | None:
        """The rows of all parts; None where one has no grid or another number of bits."""
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or len({part.bits for part in known}) != 1:
            return None
        return QuantizedMatrix(
            bits=known[0].bits,
            codes=torch.cat([part.codes for part in known]),
            scales=torch.cat([part.scales for part in known]),
            zeros=torch.cat([part.zeros for part in known]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixGrid:
    """A matrix [N, K] of G groups of inputs.

    codes: uint8 [N, K]; scales: float32 [N, G]; zeros: int16 [N, G]; group_of: int64 [K], the group
    of each input.
    """

    bits: int
    codes: Tensor
    scales: Tensor
    zeros: Tensor
    group_of: Tensor

    def weight(self) -> Tensor:
        """The matrix in float32 [N, K]."""
        weight = self.codes.to(torch.float32)
        weight -= self.zeros.to(torch.float32)[:, self.group_of]
        weight *= self.scales[:, self.group_of]
        return weight

    def blocks(self) -> QuantizedMatrix | None:
        """The same weights in blocks of 32 inputs; None where the groups do not fit blocks.

        They do not where K or a group is no multiple of 32, where the groups follow the order of
        the activations (GPTQ's desc_act), or where a zero point is not among the codes.
        """
        inputs = self.codes.shape[1]
        if self.bits not in FRONT_BITS or inputs % BLOCK_SIZE:
            return None
        groups = self.group_of.view(-1, BLOCK_SIZE)
        first = groups[:, 0]
        if not torch.equal(groups, first[:, None].expand_as(groups)):
            return None
        zeros = self.zeros[:, first]
        if bool((zeros < 0).any()) or bool((zeros >= 1 << self.bits).any()):
            return None
        return QuantizedMatrix(
            bits=self.bits,
            codes=self.codes,
            scales=self.scales[:, first].contiguous(),
            zeros=zeros.to(torch.uint8),
        )

    def rows(self, order: Tensor) -> MatrixGrid:
        """The same matrix with its rows in another order."""
        return MatrixGrid(
            bits=self.bits,
            codes=self.codes[order],
            scales=self.scales[order],
            zeros=self.zeros[order],
            group_of=self.group_of,
        )


def unpacked(words: Tensor, bits: int) -> Tensor:
    """Codes uint8 [.., n * 32 / bits] of int32 words [.., n], the lowest bits first."""
    shifts = torch.arange(0, _WORD_BITS, bits, dtype=torch.int32)
    codes = (words.to(torch.int32)[..., None] >> shifts) & ((1 << bits) - 1)
    return codes.to(torch.uint8).flatten(-2)


def even_groups(inputs: int, count: int) -> Tensor:
    """The group of each of `inputs` inputs in `count` groups of the same size, in order."""
    size = -(-inputs // count)
    return torch.arange(inputs) // size

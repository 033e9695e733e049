"""Fewer bits for a matrix: codes, scales and zero points as ONNX Runtime's kernels read them.

A block of weights shares a scale and, at 4 bits, a zero point. How many are in a block is the
plan's choice (`optimizer.cost.front_kernels`). Rounding to the nearest step of
an evenly divided range treats all weights alike. A matrix's inputs are not alike: a few channels of
the hidden state are many times larger than the others. At 4 bits, several ranges and zero points
are therefore tried for every block. Each gets the scale that fits its codes best (weighted least
squares). The one with the smallest expected error of the product is taken, where an error counts by
the mean square of its input channel. Source: ours; weighting by activations is known from AWQ (Lin
et al. 2023, arXiv:2306.00978) and llama.cpp's importance matrices.

Compensating the error in the columns that follow (GPTQ, Frantar et al. 2022, arXiv:2210.17323) was
tried and gave no gain: docs/results/planning-and-predictions.md has the figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from optimizer.export.sources.packed.matrix_grid import QuantizedMatrix

SEARCHED_BITS: Final = 4  # at 8 bits the nearest step is good enough
RANGES: Final = (1.05, 1.0, 0.95, 0.9, 0.85, 0.8, 0.74)  # shares of a block's range that are tried
ZERO_STEPS: Final = (-1, 0, 1)  # around the zero point that the range gives
CHUNK_WEIGHTS: Final = 1 << 19  # searched at once: the work space stays in a processor's cache
PART_WEIGHTS: Final = 1 << 24  # of a matrix that is widened in parts: 64 MiB
TINY: Final = 1e-20


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundedMatrix:
    """What MatMulNBits reads.

    block: weights B that share a scale. codes: uint8 [N, K', B * bits / 8], K' blocks a row, two
    4-bit codes a byte, the lower half first; scales: float32 [N, K']; zeros: uint8 packed like the
    codes, or None: the middle.
    """

    bits: int
    block: int
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None


def round_matrix(weight: Tensor, importance: Tensor, bits: int, block: int) -> RoundedMatrix:
    """Weights float32 [N, K] (outputs by inputs) in 4 or 8 bits, in blocks of `block`.

    importance: float32 [K], mean square of each input. Only its ratios count, and only at 4 bits.
    """
    outputs, inputs = weight.shape
    padding = -inputs % block
    blocks = pad(weight, (0, padding)).view(-1, block)
    if bits == SEARCHED_BITS:
        shaped = blocks.view(outputs, -1, block)
        codes, scales, zeros = _searched(shaped, _block_weights(importance, padding, block))
        return RoundedMatrix(
            bits=bits, block=block, codes=_packed(codes), scales=scales, zeros=_packed(zeros)
        )
    middle = 1 << (bits - 1)
    scales = blocks.abs().amax(-1).clamp_min(TINY) / (middle - 1)
    codes = (blocks / scales[:, None]).round_().add_(middle).to(torch.uint8)
    return RoundedMatrix(
        bits=bits,
        block=block,
        codes=codes.view(outputs, -1, block),
        scales=scales.view(outputs, -1),
        zeros=None,
    )


def round_rows(weight: Tensor, importance: Tensor, bits: int, block: int) -> RoundedMatrix:
    """`round_matrix` of weights in any float type, widened a part at a time.

    The rows of a matrix are rounded independently, so the parts change nothing.
    """
    step = max(1, PART_WEIGHTS // weight.shape[1])
    parts = [round_matrix(part.float(), importance, bits, block) for part in weight.split(step)]
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return RoundedMatrix(
        bits=bits,
        block=block,
        codes=torch.cat([part.codes for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        zeros=torch.cat(zeros) if zeros else None,
    )


def taken_over(grid: QuantizedMatrix, block: int) -> RoundedMatrix:
    """A matrix that is on a grid already: the same weights, without rounding.

    Its blocks are joined up to `block` weights where all of them have one scale and zero point.
    """
    outputs, inputs = grid.codes.shape
    while (inputs // grid.scales.shape[1]) < block and (wider := grid.joined_blocks()) is not None:
        grid = wider
    size = inputs // grid.scales.shape[1]
    codes, zeros = grid.codes.view(outputs, -1, size), grid.zeros
    if grid.bits == SEARCHED_BITS:
        codes, zeros = _packed(codes), _packed(zeros)
    return RoundedMatrix(bits=grid.bits, block=size, codes=codes, scales=grid.scales, zeros=zeros)


def _block_weights(importance: Tensor, padding: int, block: int) -> Tensor:
    """Weights [K', B] of errors. Channels that the sample never used get a small one, so that they
    are rounded to the nearest step."""
    weights = pad(importance, (0, padding)).view(-1, block)
    return weights + 1e-6 * weights.mean() + TINY


def _searched(blocks: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 [N, K', B], scales float32 [N, K'] and zero points uint8 [N, K'] of blocks
    [N, K', B] whose errors count by weights [K', B]. Works on a part of the rows at a time."""
    rows = max(1, CHUNK_WEIGHTS // weights.numel())
    in_block_first = weights.t().contiguous()[:, None]
    codes = torch.empty(blocks.shape, dtype=torch.uint8)
    found = []
    for begin in range(0, len(blocks), rows):
        part = blocks[begin : begin + rows].permute(2, 0, 1).contiguous()
        part_codes, scales, zeros = _search(part, in_block_first)
        codes[begin : begin + rows] = part_codes.permute(1, 2, 0)
        found.append((scales, zeros.to(torch.uint8)))
    scales, zeros = (torch.cat(column) for column in zip(*found, strict=True))
    return codes, scales, zeros


def _search(blocks: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best of the ranges and zero points for each block: codes [B, R, K'], scales and zero
    points [R, K'] of blocks [B, R, K'], weights [B, 1, K'].

    A block's weighted error at scale s is W + s (s D - 2 N), where W does not depend on the codes
    u, N = sum w u b and D = sum w u u; N / D is the best scale. All passes write where others
    wrote before.
    """
    top = (1 << SEARCHED_BITS) - 1
    low, high = blocks.amin(0).clamp(max=0.0), blocks.amax(0).clamp(min=0.0)
    step = ((high - low) / top).clamp_min(TINY)
    middle = (-low / step).round_()
    weighted = weights * blocks
    least = torch.full_like(low, torch.inf)
    scales, zeros = torch.ones_like(low), torch.zeros_like(low)
    steps, units, products = (torch.empty_like(blocks) for _ in range(3))
    for share in RANGES:
        torch.mul(blocks, 1 / (step * share), out=steps).round_()
        for shift in ZERO_STEPS:
            zero = (middle + shift).clamp_(0, top)
            torch.clamp(steps, -zero, top - zero, out=units)
            to_blocks = torch.mul(units, weighted, out=products).sum(0)
            to_units = torch.mul(units, units, out=products).mul_(weights).sum(0).clamp_min_(TINY)
            fitted = to_blocks / to_units
            scale = torch.where(fitted > 0, fitted, step * share)
            error = scale * (scale * to_units - 2 * to_blocks)
            better = error < least
            least = torch.where(better, error, least)
            scales = torch.where(better, scale, scales)
            zeros = torch.where(better, zero, zeros)
    # With the fitted scale another code may be nearer, so one more rounding can only help.
    codes = torch.div(blocks, scales, out=units).round_().add_(zeros).clamp_(0, top)
    return codes, scales, zeros


def _packed(codes: Tensor) -> Tensor:
    """uint8 [.., n] of 4-bit codes, two a byte, the lower half first."""
    codes = pad(codes, (0, codes.shape[-1] % 2))
    return codes[..., 0::2] | (codes[..., 1::2] << 4)

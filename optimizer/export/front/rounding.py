"""Fewer bits for a matrix: codes, scales and zero points as ONNX Runtime's kernels read them.

A block of 32 weights shares a scale and, at 4 bits, a zero point. Rounding to the nearest step of
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

BLOCK_SIZE: Final = 32
SEARCHED_BITS: Final = 4  # at 8 bits the nearest step is good enough
RANGES: Final = (1.05, 1.0, 0.95, 0.9, 0.85, 0.8, 0.74)  # shares of a block's range that are tried
ZERO_STEPS: Final = (-1, 0, 1)  # around the zero point that the range gives
CHUNK_BLOCKS: Final = 1 << 18  # blocks at once: a few hundred MB of work space
PART_WEIGHTS: Final = 1 << 26  # of a matrix that is widened in parts: 256 MiB
TINY: Final = 1e-20


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundedMatrix:
    """What MatMulNBits reads.

    codes: uint8 [N, K', 4 * bits], K' blocks a row, two 4-bit codes a byte, the lower half first;
    scales: float32 [N, K']; zeros: uint8 packed like the codes, or None: the middle.
    """

    bits: int
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None


def round_matrix(weight: Tensor, importance: Tensor, bits: int) -> RoundedMatrix:
    """Weights float32 [N, K] (outputs by inputs) in 4 or 8 bits.

    importance: float32 [K], mean square of each input. Only its ratios count, and only at 4 bits.
    """
    outputs, inputs = weight.shape
    padding = -inputs % BLOCK_SIZE
    blocks = pad(weight, (0, padding)).view(-1, BLOCK_SIZE)
    if bits == SEARCHED_BITS:
        codes, scales, zeros = _searched(blocks, _block_weights(importance, padding))
        return RoundedMatrix(
            bits=bits,
            codes=_packed(codes).view(outputs, -1, BLOCK_SIZE // 2),
            scales=scales.view(outputs, -1),
            zeros=_packed(zeros.view(outputs, -1)),
        )
    middle = 1 << (bits - 1)
    scales = blocks.abs().amax(-1).clamp_min(TINY) / (middle - 1)
    codes = (blocks / scales[:, None]).round_().add_(middle).to(torch.uint8)
    return RoundedMatrix(
        bits=bits,
        codes=codes.view(outputs, -1, BLOCK_SIZE),
        scales=scales.view(outputs, -1),
        zeros=None,
    )


def round_rows(weight: Tensor, importance: Tensor, bits: int) -> RoundedMatrix:
    """`round_matrix` of weights in any float type, widened a part at a time.

    The rows of a matrix are rounded independently, so the parts change nothing.
    """
    step = max(1, PART_WEIGHTS // weight.shape[1])
    parts = [round_matrix(part.float(), importance, bits) for part in weight.split(step)]
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return RoundedMatrix(
        bits=bits,
        codes=torch.cat([part.codes for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        zeros=torch.cat(zeros) if zeros else None,
    )


def _block_weights(importance: Tensor, padding: int) -> Tensor:
    """Weights [K', 32] of errors. Channels that the sample never used get a small one, so that they
    are rounded to the nearest step."""
    weights = pad(importance, (0, padding)).view(-1, BLOCK_SIZE)
    return weights + 1e-6 * weights.mean() + TINY


def _searched(blocks: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 [B, 32], scales float32 [B] and zero points uint8 [B] of B blocks, whole rows of
    the matrix. Works on a part of the rows at a time."""
    rows = max(1, CHUNK_BLOCKS // len(weights))
    parts = [
        _search(chunk.view(-1, *weights.shape), weights)
        for chunk in blocks.split(rows * len(weights))
    ]
    codes, scales, zeros = (torch.cat(column) for column in zip(*parts, strict=True))
    codes = codes.view(-1, BLOCK_SIZE).to(torch.uint8)
    return codes, scales.view(-1), zeros.view(-1).to(torch.uint8)


def _search(blocks: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best of the ranges and zero points for each block of [R, K', 32]."""
    top = (1 << SEARCHED_BITS) - 1
    low, high = blocks.amin(-1).clamp(max=0.0), blocks.amax(-1).clamp(min=0.0)
    step = ((high - low) / top).clamp_min(TINY)
    middle = (-low / step).round_()
    least = torch.full_like(low, torch.inf)
    scales, zeros = torch.ones_like(low), torch.zeros_like(low)
    for share in RANGES:
        steps = (blocks / (step * share)[..., None]).round_()
        for shift in ZERO_STEPS:
            zero = (middle + shift).clamp_(0, top)
            units = torch.clamp(steps + zero[..., None], 0, top) - zero[..., None]
            weighted = weights * units
            fitted = (weighted * blocks).sum(-1) / (weighted * units).sum(-1).clamp_min(TINY)
            scale = torch.where(fitted > 0, fitted, step * share)
            error = (weights * (blocks - units * scale[..., None]).square_()).sum(-1)
            better = error < least
            least = torch.where(better, error, least)
            scales = torch.where(better, scale, scales)
            zeros = torch.where(better, zero, zeros)
    # With the fitted scale another code may be nearer, so one more rounding can only help.
    codes = (blocks / scales[..., None]).round_().add_(zeros[..., None]).clamp_(0, top)
    return codes, scales, zeros


def _packed(codes: Tensor) -> Tensor:
    """uint8 [.., n] of 4-bit codes, two a byte, the lower half first."""
    codes = pad(codes, (0, codes.shape[-1] % 2))
    return codes[..., 0::2] | (codes[..., 1::2] << 4)

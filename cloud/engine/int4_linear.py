"""Linear layers that hold 4-bit weights on a GPU, and the conversion of weights to 4 bits.

A weight is scale * code + low, with codes 0 to 15 and one scale and low for 64 weights of a row
(`cloud.gpu.four_bit`): 4.5 bits a weight in all. Of some scales each group takes the one with the
least squared error: of its whole range, of a part of it (its outermost weights are then clipped),
and of its range in fewer steps. The last keeps weights that lie on a grid of 16 values or fewer,
as those of a GPTQ or AWQ checkpoint do: they move by the rounding of scale and low alone. Both are
bfloat16, so a scale is that of the range above the low as it is rounded.

Scaling groups by least squares: common, as in GGUF's k-quants and HQQ (Badri & Shaji 2023). The
steps of a grid are ours.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cloud.engine.weight_only_linear import TRIAL_WIDTH, trial_weight, why_products_differ
from cloud.errors import WeightsError
from cloud.gpu.four_bit_layout import BLOCK, GROUP, PARAMETER_TYPE, num_blocks

MOST_CODE: Final = 15
# Of a group's range, when all 16 codes are used.
_SHARES: Final = (1.0, 0.95, 0.9, 0.85, 0.8)
_CONVERTED_AT_ONCE: Final = 4 << 20  # values: their errors are held for every scale in turn


class Int4Linear(nn.Module):
    """y = x W^T + b with 4-bit W. Inference only; tensors as `four_bit_product` takes them.

    width: K. bias: [N] or None, held as float32. Takes and returns bfloat16, float16 or float32
    [..., K] and [..., N].
    """

    codes: Tensor
    scale: Tensor
    low: Tensor
    bias: Tensor | None

    def __init__(
        self, codes: Tensor, scale: Tensor, low: Tensor, bias: Tensor | None = None, *, width: int
    ) -> None:
        super().__init__()
        from cloud.gpu.four_bit import four_bit_product  # Triton, which no CPU server needs

        self._product = four_bit_product
        self.in_features = width
        self.out_features = codes.shape[0]
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("scale", scale.contiguous())
        self.register_buffer("low", low.contiguous())
        self.register_buffer("bias", None if bias is None else bias.float().contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        rows = x.reshape(-1, self.in_features)
        out = self._product(rows, self.codes, self.scale, self.low, self.bias)
        return out.reshape(*x.shape[:-1], self.out_features)


def why_no_int4(device: torch.device) -> str | None:
    """Why an Int4Linear cannot run on this device, in a few words."""
    from cloud.gpu.weight_only import why_not

    return why_not(device) or _why_not_after_trial(device)


@functools.cache
def _why_not_after_trial(device: torch.device) -> str | None:
    """Compare small products with float64: a compiler may be wrong."""
    if device.type != "cuda":
        return None
    coded = to_int4(trial_weight(device))
    return why_products_differ(
        Int4Linear(*coded, width=TRIAL_WIDTH), from_int4(*coded, TRIAL_WIDTH)
    )


def to_int4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scale and low of a matrix [N, K] of any float type, as `four_bit_product` takes them.

    Raises WeightsError for values that are not finite, or nearly not.
    """
    num_outputs, width = weight.shape
    blocks = num_blocks(width)
    device = weight.device
    codes = torch.empty(num_outputs, GROUP * blocks, dtype=torch.uint8, device=device)
    scale = torch.empty(num_outputs, 2 * blocks, dtype=PARAMETER_TYPE, device=device)
    low = torch.empty_like(scale)
    counted = torch.arange(BLOCK * blocks, device=device).view(2 * blocks, GROUP) < width
    num_rows = max(1, _CONVERTED_AT_ONCE // max(1, width))
    for begin in range(0, num_outputs, num_rows):
        rows = slice(begin, begin + num_rows)
        part = weight[rows].float()
        # What fills the last block is not counted by the product; it must not widen the range.
        part = F.pad(part, (0, BLOCK * blocks - width), mode="replicate")
        groups = part.view(len(part), 2 * blocks, GROUP)
        found, scale[rows], low[rows] = _coded(groups, counted)
        halves = found.view(len(part), blocks, 2, GROUP)
        pairs = halves[:, :, 0] | halves[:, :, 1] << 4
        codes[rows] = pairs.view(len(part), GROUP * blocks)
    most = MOST_CODE * scale.float() + low.float()
    if not bool(weight.isfinite().all() and (most.isfinite() & low.isfinite()).all()):
        raise WeightsError("a matrix has values that are not finite, so it has no 4-bit codes")
    return codes, scale, low


def from_int4(codes: Tensor, scale: Tensor, low: Tensor, width: int) -> Tensor:
    """The matrix [N, width] float32 that these stand for."""
    count, blocks = len(codes), num_blocks(width)
    pairs = codes.view(count, blocks, GROUP)
    values = torch.stack((pairs & 15, pairs >> 4), dim=2).view(count, 2 * blocks, GROUP).float()
    values = values * scale.float()[..., None] + low.float()[..., None]
    return values.view(count, BLOCK * blocks)[:, :width]


def _coded(groups: Tensor, counted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 [N, G, 64], scale and low [N, G] of groups float32 [N, G, 64]. counted: bool
    [G, 64], which weights are there."""
    best: list[Tensor] = []
    for scale, low in _candidates(groups):
        step = scale.float()[..., None]
        start = low.float()[..., None]
        ratio = (groups - start) / torch.where(step == 0, 1.0, step)
        codes = ratio.round_().clamp_(0, MOST_CODE)
        error = ((codes * step + start - groups).square_() * counted).sum(dim=2)
        error = torch.where(error.isnan(), torch.inf, error)
        found = [error, codes.to(torch.uint8), scale, low]
        if best:
            better = error < best[0]
            found = [
                torch.where(better[..., None] if new.dim() == 3 else better, new, old)
                for new, old in zip(found, best, strict=True)
            ]
        best = found
    return best[1], best[2], best[3]


def _candidates(groups: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Scales and lows to try, [N, G] each."""
    least, most = groups.amin(dim=2), groups.amax(dim=2)
    middle, reach = least / 2 + most / 2, most / 2 - least / 2
    for share in _SHARES:
        low = (middle - share * reach).to(PARAMETER_TYPE)
        yield _scale_above(low, middle + share * reach), low
    low = least.to(PARAMETER_TYPE)
    below = (least - least.abs() * 2.0**-8).to(PARAMETER_TYPE)  # never rounded to above `least`
    yield _scale_above(below, most), below
    for steps in range(MOST_CODE - 1, 0, -1):
        yield (2 * reach / steps).to(PARAMETER_TYPE), low


def _scale_above(low: Tensor, most: Tensor) -> Tensor:
    """The scale of a group whose values reach from `low`, as it is rounded, up to `most`."""
    return ((most - low.float()).clamp_(min=0) / MOST_CODE).to(PARAMETER_TYPE)

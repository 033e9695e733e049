"""Matrix products in bfloat16 where the processor is much faster at them.

Norms, attention and the residual stream stay float32. Only the inputs and weights of a matrix are
rounded, to 8 bits of mantissa. That changes a model's predictions by a KL of about 2e-4 (measured):
good enough to write text and to collect statistics, too much to measure a fine level by.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_HEAD_ROWS: Final = 8192  # of the head's matrix, widened at a time


def has_fast_bfloat16(device: str) -> bool:
    """Whether products in bfloat16 are faster than in float32 on this type of device."""
    if device == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported())
    return bool(torch.cuda.is_bf16_supported())


class FastLinear(nn.Module):
    """y = x W^T + b with both factors rounded to bfloat16. Takes and gives float32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.to(torch.bfloat16), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        out = F.linear(x.to(torch.bfloat16), self.weight).float()
        return out if self.bias is None else out + self.bias


class Head(nn.Module):
    """The head, its matrix as it is given; a few thousand rows of it are widened at a time.

    kind: what it multiplies in, float32 or bfloat16. It may be set at any time.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, kind: torch.dtype) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.float(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        out: Tensor = _HeadProduct.apply(x, self.weight, self.kind)
        return out if self.bias is None else out + self.bias


class _HeadProduct(torch.autograd.Function):
    """x W^T, whose gradient needs no widened copy of W either. kind: of the factors."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, kind: torch.dtype) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(weight)
        ctx.kind = kind
        rows = x.to(kind)
        out = x.new_empty(*x.shape[:-1], len(weight), dtype=torch.float32)
        parts = zip(out.split(_HEAD_ROWS, -1), weight.split(_HEAD_ROWS), strict=True)
        for of_part, part in parts:
            of_part.copy_(F.linear(rows, part.to(kind)))
        return out

    @staticmethod
    def backward(ctx, slope: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        (weight,) = ctx.saved_tensors
        found = torch.zeros(*slope.shape[:-1], weight.shape[1], device=slope.device)
        slopes = slope.split(_HEAD_ROWS, -1)
        for of_part, part in zip(slopes, weight.split(_HEAD_ROWS), strict=True):
            found += of_part.to(ctx.kind) @ part.to(ctx.kind)
        return found, None, None


def quicken(module: nn.Module) -> None:
    """Put `FastLinear` in the place of a layer's linear modules."""
    for name, child in list(module.named_modules()):
        if isinstance(child, nn.Linear):
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, FastLinear(child))

"""Linear layers with int8 weights that are batch-invariant: every row is computed by itself.

torch's dynamic int8 takes one activation scale for the whole tensor, so a row's result would
depend on its neighbours. Here each row is written as two int8 digits with the row's own scale,

    x = s (q1 + q2 / 254),  s = max|x| / 127,  q1 = round(x / s),  q2 = trunc(254 (x / s - q1)),

which is about 15 bits in all. Both digits are multiplied with the weights in one integer product.
int32 sums are exact, so the result has the same bits in any batch and on any number of threads. The
weights, whose reading takes most of the time, are read once. Ours; there are two digits because
activations with outliers need more than 8 bits (docs/architecture.md).

`pack` gives the weights to the compiled kernel (`cloud.kernel.library`) where there is one. torch's
own integer product runs elsewhere.
"""

from __future__ import annotations

import functools
import logging
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cloud.engine.weight_only_linear import WeightOnlyLinear, why_no_weight_only
from cloud.kernel import library as native

logger = logging.getLogger(__name__)

MAX_EXACT_WIDTH: Final = native.MAX_EXACT_WIDTH  # the int32 sum cannot overflow below
_SECOND_DIGIT: Final = 254.0
_TINY: Final = torch.finfo(torch.float32).tiny


class Int8Linear(nn.Module):
    """y = x W^T + b with W = codes * scale. Inference only.

    codes: [out, in] int8; scale: [out] float32; bias: [out] float32 or None. Takes and returns
    float32 [..., in] and [..., out].
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, codes: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.in_features = codes.shape[1]
        self.out_features = codes.shape[0]
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self._columns = self.codes.t()  # [in, out], a view
        self._kernel: native.NativeKernel | None = None
        self.packed: native.PackedLinear | None = None

    def forward(self, x: Tensor) -> Tensor:
        """float32 [..., in] -> [..., out]."""
        rows = x.reshape(-1, self.in_features)
        if self._kernel is not None and self.packed is not None:
            out = self._kernel.linear(rows, self.packed)
        elif integer_product_is_exact(rows.device.type):
            out = self.product(*quantize_rows(rows))
        else:
            out = F.linear(rows, self.codes.float() * self.scale[:, None], self.bias)
        return out.reshape(*x.shape[:-1], self.out_features)

    def pack(self) -> None:
        """Give the weights to the compiled kernel where there is one, and drop them here."""
        self._kernel = native.load() if self.codes.device.type == "cpu" else None
        if self._kernel is None or self.codes.numel() == 0:
            return
        self.packed = native.PackedLinear(self.codes, self.scale, self.bias)
        self.drop()

    def drop(self) -> None:
        """Free the unpacked weights. The layer, a part of a joined one, cannot run any more."""
        self.codes = self.codes.new_empty((self.out_features, 0))
        self._columns = self.codes.t()

    def product(self, digits: Tensor, row_scale: Tensor) -> Tensor:
        """[2 T, in] int8 digits and [T, 1] scales of `quantize_rows` -> [T, out] float32."""
        sums = torch._int_mm(digits, self._columns).float()  # [2 T, out]
        high, low = sums.chunk(2)
        out = torch.add(high, low, alpha=1.0 / _SECOND_DIGIT).mul_(row_scale).mul_(self.scale)
        return out if self.bias is None else out.add_(self.bias)

    def refresh(self) -> None:
        """To be called after `codes` was replaced."""
        self._columns = self.codes.t()


class DequantizedLinear(nn.Module):
    """The same numbers through float weights of `dtype`: where the integer product is not exact.

    Takes and returns `dtype`. bfloat16 rounds a weight to 8 bits of mantissa.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", (codes.float() * scale[:, None]).to(dtype))
        self.register_buffer("bias", None if bias is None else bias.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return F.linear(x, self.weight, self.bias)


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [T, in] -> digits int8 [2 T, in], first ones before second ones, and scale [T, 1]."""
    largest = torch.linalg.vector_norm(rows, ord=float("inf"), dim=-1, keepdim=True)
    scale = largest.mul_(1.0 / 127.0).clamp_(min=_TINY)
    ratio = rows / scale
    first = torch.round(ratio)
    # The conversion truncates the second digit. That costs half a unit of it and saves a call.
    second = ratio.sub_(first).mul_(_SECOND_DIGIT)
    return torch.cat((first, second)).to(torch.int8), scale


def int8_linear(
    codes: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """The integer layer where this machine can run it, else one that computes in `dtype`.

    On a GPU that one keeps the weights as they are, where Triton runs there.
    """
    if runs_int8(codes.device.type, dtype) and codes.shape[1] <= MAX_EXACT_WIDTH:
        return Int8Linear(codes, scale, bias)
    if codes.device.type == "cuda":
        reason = why_no_weight_only(codes.device)
        if reason is None:
            return WeightOnlyLinear(codes, scale, bias)
        _say_widened(reason, dtype)
    return DequantizedLinear(codes, scale, bias, dtype)


@functools.cache
def _say_widened(reason: str, dtype: torch.dtype) -> None:
    logger.warning("8-bit weights are widened to %s at load: %s", dtype, reason)


def runs_int8(device: str, dtype: torch.dtype = torch.float32) -> bool:
    """Whether products of integers run in a back that computes in `dtype` on this type of device.

    Only CPUs do that: torch's integer product on a GPU refuses 16 rows and fewer.
    """
    if device != "cpu" or dtype != torch.float32:
        return False
    return integer_product_is_exact(device) or native.load() is not None


@functools.cache
def integer_product_is_exact(device: str) -> bool:
    """Whether torch's int8 product gives exact int32 sums on this device, for the largest values.

    CPUs without VNNI add pairs in 16 bits and may saturate.
    """
    try:
        for num_rows in (2, 16, 64):
            signs = torch.arange(num_rows * 96, device=device).reshape(num_rows, 96) % 3 - 1
            left = (signs * 127 + (signs == 0) * -127).to(torch.int8)
            right = torch.full((64, 96), 127, dtype=torch.int8, device=device)
            right[::2, ::3] = -127
            got = torch._int_mm(left, right.t())
            if not torch.equal(got.cpu().long(), left.cpu().long() @ right.cpu().long().t()):
                raise RuntimeError("sums saturate")
    except RuntimeError as error:
        logger.warning("int8 products are not usable on %s (%s): int8 as float32", device, error)
        return False
    return True

"""Linear layers that hold 8-bit weights on a GPU, and the conversion of weights to 8 bits.

Activations stay in the compute type; `cloud.gpu.weight_only` widens the weights as it multiplies.
Both conversions are symmetric, with one scale an output row, rounded to the nearest code:

    int8       scale = max|row| / 127    error of a weight <= scale / 2
    fp8 e4m3   scale = max|row| / 448    error of a weight <= max(|weight| / 16, scale / 1024)

float8 e4m3: Micikevicius et al. 2022, arXiv:2209.05433. The use of a row's maximum is ours, and
common.
"""

from __future__ import annotations

import functools
from typing import Final

import torch
from torch import Tensor, nn

from cloud.errors import WeightsError

FP8_TYPE: Final = torch.float8_e4m3fn
_MAX_FP8: Final = 448.0
_MAX_INT8: Final = 127.0
TRIAL_WIDTH: Final = 200
_MAX_TRIAL_ERROR: Final = 1e-2  # relative; rounding to bfloat16 gives 2e-3
_CONVERTED_AT_ONCE: Final = 8 << 20  # values: a head of a large vocabulary has half a billion


class WeightOnlyLinear(nn.Module):
    """y = x W^T + b with W = codes * scale. Inference only.

    codes: [out, in] int8 or float8_e4m3fn; scale: [out] float32; bias: [out] or None, held as
    float32. Takes and returns bfloat16, float16 or float32 [..., in] and [..., out].
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, codes: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        from cloud.gpu.weight_only import weight_only_product  # Triton, which no CPU server needs

        self._product = weight_only_product
        self.in_features = codes.shape[1]
        self.out_features = codes.shape[0]
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("scale", scale.float().contiguous())
        self.register_buffer("bias", None if bias is None else bias.float().contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        rows = x.reshape(-1, self.in_features)
        out = self._product(rows, self.codes, self.scale, self.bias)
        return out.reshape(*x.shape[:-1], self.out_features)


def why_no_weight_only(device: torch.device, codes: torch.dtype = torch.int8) -> str | None:
    """Why a WeightOnlyLinear of such codes cannot run on this device, in a few words."""
    from cloud.gpu.weight_only import why_not

    return why_not(device, codes) or _why_not_after_trial(device, codes)


@functools.cache
def _why_not_after_trial(device: torch.device, codes: torch.dtype) -> str | None:
    """Compare small products with float64, once for each kind: a compiler may be wrong."""
    if device.type != "cuda":
        return None
    weight = trial_weight(device)
    linear = WeightOnlyLinear(*(to_int8(weight) if codes == torch.int8 else to_fp8(weight)))
    return why_products_differ(linear, linear.codes.float() * linear.scale[:, None])


def trial_weight(device: torch.device) -> Tensor:
    """A small matrix [96, TRIAL_WIDTH] to try a kernel with."""
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(96, TRIAL_WIDTH, device=device, generator=generator)


def why_products_differ(linear: nn.Module, whole: Tensor) -> str | None:
    """Why a layer that stands for `whole`, float32 [N, K], cannot be used: its products differ from
    those of float64."""
    generator = torch.Generator(whole.device).manual_seed(1)
    for num_rows in (1, 20, 70):
        shape = num_rows, whole.shape[1]
        rows = torch.randn(shape, device=whole.device, generator=generator).bfloat16()
        want = rows.double() @ whole.double().t()
        error = float((linear(rows).double() - want).norm() / want.norm())
        if not error < _MAX_TRIAL_ERROR:
            return f"the kernel's products differ by {error:.1e} on this GPU"
    return None


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 [out, in] and scales float32 [out] of a matrix [out, in] of any float type.

    A row of zeros has the scale 0. Raises WeightsError for values that are not finite.
    """
    return _to_codes(weight, _MAX_INT8, torch.int8)


def to_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes float8_e4m3fn [out, in] and scales float32 [out]; otherwise as `to_int8`."""
    return _to_codes(weight, _MAX_FP8, FP8_TYPE)


def _to_codes(weight: Tensor, largest: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    codes = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    scale = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
    num_rows = max(1, _CONVERTED_AT_ONCE // max(1, weight.shape[1]))
    for begin in range(0, weight.shape[0], num_rows):
        rows = slice(begin, begin + num_rows)
        part = weight[rows].float()
        scale[rows] = part.abs().amax(dim=1) / largest
        divisor = torch.where(scale[rows] == 0, 1.0, scale[rows])
        ratio = (part / divisor[:, None]).clamp_(-largest, largest)
        codes[rows] = (ratio.round_() if dtype == torch.int8 else ratio).to(dtype)
    if not bool(scale.isfinite().all()):
        raise WeightsError("a matrix has values that are not finite, so it has no 8-bit codes")
    return codes, scale

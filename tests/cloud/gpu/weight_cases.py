"""Rows and 8-bit weights for the tests of the weight-only product, and its float64 reference."""

from __future__ import annotations

import torch
from torch import Tensor

from cloud.engine.weight_only_linear import to_fp8, to_int8

# Half a unit in the last place of a result.
HALF_UNIT = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random_rows(seed: int, count: int, width: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Rows [count, width], a few values of which are large, as in real activations."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    rows = torch.randn(count, width, generator=generator, device=DEVICE)
    rows[::3, 5] *= 100
    return rows.to(dtype)


def random_weights(seed: int, out: int, width: int, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [out, width], scale [out] and bias [out]; kind: int8 or fp8."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    weight = torch.randn(out, width, generator=generator, device=DEVICE) / width**0.5
    codes, scale = to_fp8(weight) if kind == "fp8" else to_int8(weight)
    return codes, scale, torch.randn(out, generator=generator, device=DEVICE)


def exact_product(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """float64 [T, out]."""
    out = x.double() @ (codes.double() * scale.double()[:, None]).t()
    return out if bias is None else out + bias.double()


def assert_near(got: Tensor, x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> None:
    """`got` is the product of these, but for the rounding of float32 sums and of its own type."""
    expected = exact_product(x, codes, scale, bias)
    # The sum of the magnitudes bounds the rounding of the sum.
    sizes = exact_product(x.abs(), codes.float().abs(), scale, None if bias is None else bias.abs())
    # The interpreter truncates to bfloat16. A GPU rounds to the nearest.
    units = 2 if DEVICE.type == "cpu" else 1
    bound = units * HALF_UNIT[x.dtype] * expected.abs() + 1e-6 * sizes
    error = (got.double() - expected).abs()
    assert got.dtype == x.dtype
    assert (error <= bound).all(), f"{(error / bound).max():.1f} times the bound"

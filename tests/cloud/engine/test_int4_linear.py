"""The conversion of weights to 4 bits: how far a weight moves, and which do not move."""

from __future__ import annotations

import pytest
import torch

from cloud.engine.int4_linear import MOST_CODE, from_int4, to_int4
from cloud.errors import WeightsError
from cloud.gpu.four_bit_layout import GROUP, num_blocks


def weights(width: int = 320) -> torch.Tensor:
    """[40, width]: rows of many sizes; row 7 is all zeros, row 8 is all the same."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(40, width, generator=generator) * torch.logspace(-6, 3, 40)[:, None]
    weight[7], weight[8] = 0, 3.0
    return weight


@pytest.mark.parametrize("width", [64, 65, 128, 200, 320])
def test_the_error_is_no_larger_than_that_of_plain_rounding(width: int) -> None:
    weight = weights(width)
    codes, scale, low = to_int4(weight)
    assert codes.shape == (40, GROUP * num_blocks(width))
    assert scale.shape == low.shape == (40, 2 * num_blocks(width))
    error = (from_int4(codes, scale, low, width) - weight).square().sum(dim=1)
    least, step = _range_of(weight)
    plain = (((weight - least) / step.clamp(min=1e-30)).round() * step + least - weight).square()
    # Scale and low are rounded to eight bits, which plain rounding here is not.
    assert (error <= 1.02 * plain.sum(dim=1) + 1e-4 * weight.square().sum(dim=1)).all()
    moved = plain.sum(dim=1) > 0
    assert (error[moved] / plain.sum(dim=1)[moved]).mean() < 0.97


def _range_of(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Least value and step of every weight's group."""
    least, step = torch.empty_like(weight), torch.empty_like(weight)
    for begin in range(0, weight.shape[1], GROUP):
        group = weight[:, begin : begin + GROUP]
        low, high = group.amin(dim=1, keepdim=True), group.amax(dim=1, keepdim=True)
        least[:, begin : begin + GROUP] = low
        step[:, begin : begin + GROUP] = (high - low) / MOST_CODE
    return least, step


@pytest.mark.parametrize("group", [64, 128])
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_on_a_grid_of_16_values_keep_their_codes(group: int, symmetric: bool) -> None:
    """As a GPTQ or AWQ checkpoint has them, also where a group uses few of the codes."""
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(0, 16, (8, 4, group), generator=generator)
    codes[0] = codes[0].clamp(3, 9)
    codes[1, :, : group // 2] = 5  # one value in a whole group of ours
    zero = 8 if symmetric else torch.randint(0, 16, (8, 4, 1), generator=generator)
    step = torch.rand(8, 4, 1, generator=generator) * 0.01 + 0.001
    weight = ((codes - zero) * step).view(8, -1)
    near = from_int4(*to_int4(weight.bfloat16()), weight.shape[1]).view(8, 4, group)
    moved = (near - weight.view(8, 4, group)).abs() / step
    assert moved.max() < 0.1  # steps; rounding anew to other steps moves weights by up to half
    assert moved.mean() < 0.03


def test_rows_of_one_value_are_exact_and_large_matrices_are_converted_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = weights()
    whole = to_int4(weight)
    near = from_int4(*whole, weight.shape[1])
    assert torch.equal(near[7:9], weight[7:9])
    monkeypatch.setattr("cloud.engine.int4_linear._CONVERTED_AT_ONCE", 320 * 7)
    for part, expected in zip(to_int4(weight), whole, strict=True):
        assert torch.equal(part, expected)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_values_that_are_not_finite_have_no_codes(value: float) -> None:
    weight = weights()
    weight[3, 3] = value
    with pytest.raises(WeightsError, match="not finite"):
        to_int4(weight)

"""The conversion of weights to 4 bits: how far a weight moves, and which do not move."""

from __future__ import annotations

import pytest
import torch

from cloud.engine.int4_linear import MOST_CODE, from_int4, to_int4
from cloud.engine.weight_only_linear import why_products_differ
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


def test_values_far_from_zero_keep_what_tells_them_apart() -> None:
    """Scale and low are bfloat16, which cannot say 1.00389."""
    generator = torch.Generator().manual_seed(3)
    weight = 1.00389 + 1e-3 * torch.rand(4, 128, generator=generator)
    error = (from_int4(*to_int4(weight), 128) - weight).square().mean().sqrt()
    assert error < 2e-4
    same = torch.full((2, 64), 1.00389)
    assert (from_int4(*to_int4(same), 64) - same).abs().max() < 1e-4


@pytest.mark.parametrize("width", [4, 70, 130])
def test_what_fills_the_last_block_has_no_say(width: int) -> None:
    """The last weights' scale is the one that is best for them."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(200, width, generator=generator)
    count = width % GROUP
    own = torch.cat([weight[:, -count:]] * (GROUP // count + 1), dim=1)[:, :GROUP]
    whole = GROUP // count * count  # every weight as often as the others
    best = (from_int4(*to_int4(own), GROUP) - own)[:, :whole].square().sum(dim=1) * count / whole
    found = (from_int4(*to_int4(weight), width) - weight)[:, -count:].square().sum(dim=1)
    assert found.mean() < 1.1 * best.mean()


def test_a_kernel_that_is_wrong_is_not_used() -> None:
    whole = torch.randn(96, 200, generator=torch.Generator().manual_seed(6))
    right, wrong = torch.nn.Linear(200, 96, bias=False), torch.nn.Linear(200, 96, bias=False)
    right.weight.data.copy_(whole)
    wrong.weight.data.copy_(whole)
    wrong.weight.data[:, 0] += 1.0
    with torch.inference_mode():
        assert why_products_differ(right.bfloat16(), whole) is None
        assert "differ by" in str(why_products_differ(wrong.bfloat16(), whole))


def test_a_matrix_without_rows_has_no_codes() -> None:
    codes, scale, low = to_int4(torch.zeros(0, 130))
    assert (codes.shape, scale.shape) == ((0, 256 // 2), (0, 4))
    assert from_int4(codes, scale, low, 130).shape == (0, 130)


@pytest.mark.parametrize("value", [1e19, 2e38, 3.4e38])
def test_values_up_to_the_end_of_float32_give_no_infinity(value: float) -> None:
    weight = torch.randn(1, 64, generator=torch.Generator().manual_seed(5))
    weight[0, 0], weight[0, 1] = value, -value
    if value > 1.7e38:  # the range of such a group is no float32
        with pytest.raises(WeightsError, match="not finite"):
            to_int4(weight)
    else:
        assert (from_int4(*to_int4(weight), 64) - weight).abs().max() < 0.1 * value


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_values_that_are_not_finite_have_no_codes(value: float) -> None:
    weight = weights()
    weight[3, 3] = value
    with pytest.raises(WeightsError, match="not finite"):
        to_int4(weight)

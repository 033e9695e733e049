"""The product with 4-bit weights, on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton", reason="Triton is not installed")

from cloud.engine.back_engine import BackEngine
from cloud.engine.back_weights import load_back
from cloud.engine.fused_layer import join_linears
from cloud.engine.int4_linear import Int4Linear, from_int4, to_int4
from cloud.gpu.four_bit import four_bit_product
from cloud.gpu.weight_only import TOKENS_OF_TILE
from tests.cloud.gpu.test_weight_only_linear import logits_of, saved
from tests.cloud.gpu.weight_cases import DEVICE, HALF_UNIT, random_rows


def four_bit_weights(seed: int, out: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return to_int4(torch.randn(out, width, generator=generator, device=DEVICE) / width**0.5)


def check_product(x: Tensor, coded: tuple[Tensor, Tensor, Tensor], bias: Tensor | None) -> None:
    """The product is that of float64, but for float32 sums and the rounding to x's type."""
    codes, scale, low = coded
    got = four_bit_product(x, codes, scale, low, bias)
    whole = from_int4(codes, scale, low, x.shape[1]).double()
    added = 0 if bias is None else bias.double()
    expected = x.double() @ whole.t() + added
    # Codes and lows are summed apart, so their sizes bound the rounding of the sums.
    most = 15 * scale.double().abs().amax(1) + low.double().abs().amax(1)
    sizes = x.double().abs().sum(dim=1, keepdim=True) * most[None, :]
    units = 2 if DEVICE.type == "cpu" else 1  # the interpreter truncates to bfloat16
    bound = units * HALF_UNIT[x.dtype] * expected.abs() + 1e-6 * sizes
    assert got.dtype == x.dtype
    assert ((got.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("count", [1, 3, 17, 64, 130])
@pytest.mark.parametrize(("out", "width"), [(50, 200), (128, 256), (33, 65), (40, 64)])
def test_the_product_is_that_of_float64(count: int, out: int, width: int) -> None:
    coded = four_bit_weights(out, out, width)
    bias = torch.randn(out, device=DEVICE)
    for added in (bias, None):
        check_product(random_rows(count, count, width), coded, added)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_types_of_rows(dtype: torch.dtype) -> None:
    check_product(random_rows(2, 5, 140, dtype), four_bit_weights(1, 70, 140), None)


def test_every_code_counts_in_its_own_place() -> None:
    """Rows that pick one weight each give the matrix itself."""
    coded = four_bit_weights(3, 48, 192)
    picks = torch.eye(192, device=DEVICE)
    got = four_bit_product(picks, *coded, None)
    assert torch.allclose(got.t(), from_int4(*coded, 192), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("count", [2, 13, 16, 31, 90])
def test_a_row_has_the_same_bits_in_any_batch_of_its_tile(count: int) -> None:
    coded = four_bit_weights(3, 70, 300)
    x = random_rows(4, count, 300)
    together = four_bit_product(x, *coded, None)
    least = max((size for size in (0, *TOKENS_OF_TILE[:-1]) if size < count), default=0) + 1
    for begin in range(0, count - least + 1, 7):
        part = four_bit_product(x[begin : begin + least], *coded, None)
        assert torch.equal(part, together[begin : begin + least])


def test_no_rows_give_no_rows_and_what_does_not_fit_is_refused() -> None:
    codes, scale, low = four_bit_weights(9, 40, 64)
    x = random_rows(10, 2, 64)
    assert four_bit_product(x[:0], codes, scale, low, None).shape == (0, 40)
    with pytest.raises(TypeError, match="float64 rows"):
        four_bit_product(x.double(), codes, scale, low, None)
    with pytest.raises(TypeError, match="int8"):
        four_bit_product(x, codes.view(torch.int8), scale, low, None)
    with pytest.raises(ValueError, match="rows of 200 values"):
        four_bit_product(random_rows(1, 2, 200), codes, scale, low, None)
    with pytest.raises(ValueError, match=r"scales \(39, 2\)"):
        four_bit_product(x, codes, scale[:39], low, None)


@pytest.mark.parametrize("bias", [True, False])
def test_joined_layers_give_what_the_parts_give(bias: bool) -> None:
    parts = [
        Int4Linear(
            *four_bit_weights(seed, out, 160),
            torch.randn(out, device=DEVICE) if bias else None,
            width=160,
        )
        for seed, out in ((1, 64), (2, 32), (3, 40))
    ]
    x = random_rows(4, 5, 160)
    before = torch.cat([part(x) for part in parts], dim=1)
    joined = join_linears(parts)
    assert isinstance(joined, Int4Linear)
    assert torch.equal(joined(x), before)
    assert torch.equal(torch.cat([part(x) for part in parts], dim=1), before)
    for name in ("codes", "scale", "low"):
        whole = getattr(joined, name)
        begin, end = whole.data_ptr(), whole.data_ptr() + whole.numel() * whole.element_size()
        assert all(begin <= getattr(part, name).data_ptr() < end for part in parts)


@pytest.mark.parametrize("coded", [False, True])
def test_a_back_of_4_bits_computes_with_its_rounded_weights(coded: bool, tmp_path: Path) -> None:
    folder = saved("qwen2", tmp_path, coded=coded)
    rounded = load_back(folder, first_layer=0, device=DEVICE, weights="bf16")
    small = load_back(folder, first_layer=0, device=DEVICE, weights="int4")
    assert rounded.dtype == small.dtype == torch.bfloat16
    linears = [m for m in small.layers[0].modules() if isinstance(m, Int4Linear)]
    assert len(linears) == 7
    assert isinstance(small.head, Int4Linear)
    for wide, narrow in zip(
        (*rounded.layers, nn.ModuleList([rounded.head])),
        (*small.layers, nn.ModuleList([small.head])),
        strict=True,
    ):
        for name, part in narrow.named_modules():
            if isinstance(part, Int4Linear):
                matrix = wide.get_submodule(name).weight
                assert isinstance(matrix, Tensor)
                near = from_int4(part.codes, part.scale, part.low, part.in_features)
                assert 0 < (near - matrix.float()).norm() < 0.12 * matrix.float().norm()
                matrix.data.copy_(near)
    engines = BackEngine(rounded), BackEngine(small)
    assert engines[1].num_fused_layers == 4
    rows = torch.randn(9, 64, generator=torch.Generator().manual_seed(5))
    expected, got = (logits_of(engine, rows) for engine in engines)
    assert 0 < (got - expected).norm() < 0.1 * expected.norm()

"""The product with 8-bit weights, on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from cloud.gpu.weight_only import TOKENS_OF_TILE, is_interpreted, tiling, weight_only_product
from tests.cloud.gpu.weight_cases import DEVICE, assert_near, random_rows, random_weights


def test_the_interpreter_runs_where_no_gpu_does() -> None:
    assert is_interpreted() == (DEVICE.type == "cpu")


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("count", [1, 3, 17, 64, 300])
@pytest.mark.parametrize(("out", "width"), [(50, 200), (128, 256), (33, 65)])
def test_the_product_is_that_of_float64(kind: str, count: int, out: int, width: int) -> None:
    codes, scale, bias = random_weights(out, out, width, kind)
    x = random_rows(count, count, width)
    for added in (bias, None):
        assert_near(weight_only_product(x, codes, scale, added), x, codes, scale, added)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_other_types_of_rows(dtype: torch.dtype, kind: str) -> None:
    codes, scale, bias = random_weights(1, 70, 140, kind)
    x = random_rows(2, 5, 140, dtype)
    assert_near(weight_only_product(x, codes, scale, bias), x, codes, scale, bias)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_every_code_is_multiplied_exactly(kind: str) -> None:
    codes = torch.arange(-127, 128, dtype=torch.int8)[:, None]
    if kind == "fp8":
        codes = torch.arange(256, dtype=torch.uint8)[:, None].view(torch.float8_e4m3fn)
        codes = codes[~codes.float().isnan()[:, 0]]
    one = torch.ones((1, 1), dtype=torch.bfloat16)
    x, codes, scale = (part.to(DEVICE) for part in (one, codes, torch.ones(len(codes))))
    assert torch.equal(weight_only_product(x, codes, scale, None).float(), codes.float().t())


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("count", [2, 13, 16, 31, 90])
def test_a_row_has_the_same_bits_in_any_batch_of_its_tile(kind: str, count: int) -> None:
    codes, scale, bias = random_weights(3, 70, 300, kind)
    x = random_rows(4, count, 300)
    together = weight_only_product(x, codes, scale, bias)
    least = max((size for size in (0, *TOKENS_OF_TILE[:-1]) if size < count), default=0) + 1
    for begin in range(0, count - least + 1, 7):
        part = weight_only_product(x[begin : begin + least], codes, scale, bias)
        assert torch.equal(part, together[begin : begin + least])


def test_no_rows_give_no_rows() -> None:
    codes, scale, bias = random_weights(5, 40, 64, "int8")
    x = random_rows(6, 0, 64)
    assert weight_only_product(x, codes, scale, bias).shape == (0, 40)


def test_rows_that_lie_apart_in_memory() -> None:
    codes, scale, _ = random_weights(7, 40, 64, "int8")
    wide = random_rows(8, 6, 128)
    x = wide[:, ::2]
    assert torch.equal(
        weight_only_product(x, codes, scale, None),
        weight_only_product(x.contiguous(), codes, scale, None),
    )


def test_types_and_shapes_that_do_not_fit_are_refused() -> None:
    codes, scale, _ = random_weights(9, 40, 64, "int8")
    x = random_rows(10, 2, 64)
    with pytest.raises(TypeError, match="float64 rows"):
        weight_only_product(x.double(), codes, scale, None)
    with pytest.raises(TypeError, match="uint8 weights"):
        weight_only_product(x, codes.view(torch.uint8), scale, None)
    with pytest.raises(ValueError, match="rows of 32 values"):
        weight_only_product(x[:, :32], codes, scale, None)
    with pytest.raises(ValueError, match=r"scales \(39,\)"):
        weight_only_product(x, codes, scale[:39], None)


@pytest.mark.parametrize("num_outputs", [1, 576, 4096, 8192, 28672, 151_936])
@pytest.mark.parametrize("row_bytes", [2, 4])
def test_the_number_of_rows_changes_nothing_that_orders_a_sum(
    num_outputs: int, row_bytes: int
) -> None:
    plans = [tiling(count, num_outputs, row_bytes) for count in (1, 16, 17, 64, 65, 5000)]
    assert len({(plan.block_n, plan.block_k, plan.num_warps) for plan in plans}) == 1
    assert [plan.block_t for plan in plans] == [16, 16, 32, 64, 64, 64]
    assert all(2 <= plan.num_stages <= 8 for plan in plans)

"""Products with 8-bit and 4-bit weights on a GPU: what the interpreter cannot show."""

from __future__ import annotations

import pytest
import torch

from cloud.engine.int4_linear import Int4Linear, from_int4, to_int4
from cloud.gpu.weight_only import TOKENS_OF_TILE, weight_only_product, why_not
from tests.cloud.gpu.weight_cases import DEVICE, assert_near, random_rows, random_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
# A small model's, and an 8B model's: queries, keys and values; output; gate and up; down.
SHAPES = [(576, 1536), (6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)]


@pytest.fixture(params=["int8", "fp8"])
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    reason = why_not("cuda", torch.float8_e4m3fn if kind == "fp8" else torch.int8)
    if reason is not None:
        pytest.skip(reason)
    return kind


@pytest.mark.parametrize(("out", "width"), SHAPES)
@pytest.mark.parametrize("count", [1, 17, 300])
def test_real_shapes_are_those_of_float64(kind: str, out: int, width: int, count: int) -> None:
    codes, scale, bias = random_weights(1, out, width, kind)
    x = random_rows(2, count, width)
    assert_near(weight_only_product(x, codes, scale, bias), x, codes, scale, bias)


@pytest.mark.parametrize(("out", "width"), SHAPES)
def test_a_row_has_the_same_bits_in_a_batch_of_any_size(kind: str, out: int, width: int) -> None:
    codes, scale, bias = random_weights(1, out, width, kind)
    x = random_rows(3, 300, width)
    whole = weight_only_product(x, codes, scale, bias)
    for count in (1, 2, 16, 17, 32, 33, 64, 65, 200):
        part = weight_only_product(x[-count:], codes, scale, bias)
        assert torch.equal(part, whole[-count:]), f"{count} rows"


@pytest.mark.parametrize(("out", "width"), SHAPES)
def test_four_bits_are_those_of_float64_and_the_same_in_any_batch_of_a_tile(
    out: int, width: int
) -> None:
    generator = torch.Generator(DEVICE).manual_seed(1)
    weight = torch.randn(out, width, generator=generator, device=DEVICE) / width**0.5
    linear = Int4Linear(*to_int4(weight), width=width)
    whole = from_int4(linear.codes, linear.scale, linear.low, width).double()
    x = random_rows(3, 300, width)
    for count in (1, 2, 16, 17, 32, 33, 64, 65, 300):
        got, want = linear(x[:count]), x[:count].double() @ whole.t()
        assert float((got.double() - want).norm() / want.norm()) < 1e-2
    assert torch.equal(linear(x[:16])[:3], linear(x[:3]))
    assert torch.equal(linear(x[:32])[:17], linear(x[:17]))
    assert torch.equal(linear(x)[:65], linear(x[:65]))


def test_a_graph_captures_it(kind: str) -> None:
    codes, scale, bias = random_weights(1, 1024, 512, kind)
    for count in TOKENS_OF_TILE:
        x = random_rows(4, count, 512)
        expected = weight_only_product(x, codes, scale, bias)
        place = torch.zeros_like(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = weight_only_product(place, codes, scale, bias)
        place.copy_(x)
        graph.replay()
        assert torch.equal(out, expected)

"""The conversion of weights to 8 bits: how far a weight moves, and what cannot be converted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cloud.engine.back_weights import load_back
from cloud.engine.weight_only_linear import to_fp8, to_int8
from cloud.errors import StartError, WeightsError
from cloud.server.config import choose_weights
from optimizer.export.back import quantize_rows
from tests.cloud.tiny_bundle import save_back
from tests.tiny_models import make_tiny_model


def weights(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[40, 96]: rows of many sizes, with values near zero; row 7 is all zeros."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(40, 96, generator=generator) * torch.logspace(-6, 3, 40)[:, None]
    weight[:, ::5] *= 1e-4
    weight[7] = 0
    return weight.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_moves_a_weight_by_half_a_step_at_most(dtype: torch.dtype) -> None:
    weight = weights(dtype)
    codes, scale = to_int8(weight)
    assert (codes.dtype, scale.dtype) == (torch.int8, torch.float32)
    assert torch.equal(scale, weight.float().abs().amax(dim=1) / 127)
    error = (weight.double() - codes.double() * scale.double()[:, None]).abs()
    assert (error <= scale.double()[:, None] / 2 * 1.00001).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_moves_a_weight_by_a_sixteenth_of_it_or_half_the_smallest_step(
    dtype: torch.dtype,
) -> None:
    weight = weights(dtype)
    codes, scale = to_fp8(weight)
    assert (codes.dtype, scale.dtype) == (torch.float8_e4m3fn, torch.float32)
    assert torch.equal(scale, weight.float().abs().amax(dim=1) / 448)
    assert codes.float().abs().amax(dim=1)[[0, 39]].tolist() == [448, 448]
    error = (weight.double() - codes.double() * scale.double()[:, None]).abs()
    bound = torch.maximum(weight.double().abs() / 16, scale.double()[:, None] / 1024)
    assert (error <= bound * 1.00001).all()


def test_a_row_of_zeros_stays_zero() -> None:
    for convert in (to_int8, to_fp8):
        codes, scale = convert(weights())
        assert scale[7] == 0
        assert (codes[7].float() == 0).all()


def test_int8_codes_are_those_of_a_build() -> None:
    for made, built in zip(to_int8(weights()), quantize_rows(weights()), strict=True):
        assert torch.equal(made, built)


def test_large_matrices_are_converted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = to_fp8(weights())
    monkeypatch.setattr("cloud.engine.weight_only_linear._CONVERTED_AT_ONCE", 96 * 7)
    for part, expected in zip(to_fp8(weights()), whole, strict=True):
        assert torch.equal(part.float(), expected.float())


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_values_that_are_not_finite_have_no_codes(value: float) -> None:
    weight = weights()
    weight[3, 3] = value
    for convert in (to_int8, to_fp8):
        with pytest.raises(WeightsError, match="not finite"):
            convert(weight)


def test_a_server_on_a_cpu_refuses_the_option() -> None:
    assert choose_weights(None, "cpu") is None
    assert choose_weights("fp8", "cuda") == "fp8"
    with pytest.raises(StartError, match="--weights int8: works on a GPU only"):
        choose_weights("int8", "cpu")
    with pytest.raises(StartError, match="--weights fp4: choose one of bf16, fp8, int8"):
        choose_weights("fp4", "cuda")


def test_a_back_says_why_it_cannot_hold_such_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_back(make_tiny_model("llama", tmp_path / "source"), tmp_path / "cloud")
    with pytest.raises(WeightsError, match="weights fp4: choose one of bf16, fp8, int8"):
        load_back(tmp_path / "cloud", first_layer=0, weights="fp4")
    monkeypatch.setattr("cloud.gpu.weight_only.triton", None)
    with pytest.raises(WeightsError, match="weights int8 cannot be used here: Triton is not inst"):
        load_back(tmp_path / "cloud", first_layer=0, weights="int8")

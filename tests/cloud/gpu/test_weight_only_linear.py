"""Linear layers with 8-bit weights in a back: joined, and in place of float ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("triton", reason="Triton is not installed")

from cloud.engine import int8_linear
from cloud.engine.back_engine import BackEngine
from cloud.engine.back_weights import load_back
from cloud.engine.batch_entry import BatchEntry
from cloud.engine.fused_layer import join_linears
from cloud.engine.int8_experts import Int8Experts
from cloud.engine.int8_linear import DequantizedLinear
from cloud.engine.weight_only_linear import WeightOnlyLinear
from cloud.kv.pool import KvPool
from tests.cloud.gpu.weight_cases import DEVICE, assert_near, random_rows, random_weights
from tests.cloud.tiny_bundle import quantized_back, save_back
from tests.tiny_models import make_tiny_model


def layer(seed: int, out: int, kind: str, *, bias: bool = True) -> WeightOnlyLinear:
    codes, scale, added = random_weights(seed, out, 160, kind)
    return WeightOnlyLinear(codes, scale, added if bias else None)


@pytest.mark.parametrize("bias", [True, False])
def test_it_takes_rows_in_any_arrangement(bias: bool) -> None:
    one = layer(1, 48, "int8", bias=bias)
    x = random_rows(2, 6, 160)
    assert (one.in_features, one.out_features) == (160, 48)
    assert_near(one(x), x, one.codes, one.scale, one.bias)
    assert torch.equal(one(x.view(2, 3, 160)), one(x).view(2, 3, 48))


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("bias", [True, False])
def test_joined_layers_give_what_the_parts_give(kind: str, bias: bool) -> None:
    parts = [layer(seed, out, kind, bias=bias) for seed, out in ((1, 64), (2, 32), (3, 40))]
    x = random_rows(4, 5, 160)
    before = torch.cat([part(x) for part in parts], dim=1)
    joined = join_linears(parts)
    assert isinstance(joined, WeightOnlyLinear)
    assert torch.equal(joined(x), before)
    assert torch.equal(torch.cat([part(x) for part in parts], dim=1), before)
    for name in ("codes", "scale", "bias") if bias else ("codes", "scale"):
        whole = getattr(joined, name)
        begin, end = whole.data_ptr(), whole.data_ptr() + whole.numel() * whole.element_size()
        assert all(begin <= getattr(part, name).data_ptr() < end for part in parts)


def test_layers_that_differ_are_not_joined() -> None:
    with pytest.raises(TypeError, match="codes of different types"):
        join_linears([layer(1, 32, "int8"), layer(2, 32, "fp8")])
    with pytest.raises(TypeError, match="different kinds"):
        join_linears([layer(1, 32, "int8"), nn.Linear(160, 32)])
    with pytest.raises(TypeError, match="have a bias"):
        join_linears([layer(1, 32, "int8"), layer(2, 32, "int8", bias=False)])


def saved(name: str, folder: Path, *, coded: bool = False) -> Path:
    save_back(make_tiny_model(name, folder / "source"), folder / "cloud")
    if coded:
        quantized_back(folder / "cloud")
    return folder / "cloud"


def logits_of(engine: BackEngine, rows: torch.Tensor) -> torch.Tensor:
    pool = KvPool(engine.kv_shape, limit_bytes=1 << 24, device=DEVICE)
    with pool.lease(split=0, max_tokens=len(rows)) as lease:
        batch = [BatchEntry(lease=lease, rows=rows, num_logits=len(rows))]
        return engine.forward(batch)[0].cpu()


@pytest.mark.parametrize(("weights", "bound"), [("int8", 0.1), ("fp8", 0.3)])
def test_a_back_of_8_bits_is_near_that_of_16_in_half_the_memory(
    weights: str, bound: float, tmp_path: Path
) -> None:
    folder = saved("qwen2", tmp_path)
    half = load_back(folder, first_layer=0, device=DEVICE, weights="bf16")
    small = load_back(folder, first_layer=0, device=DEVICE, weights=weights)
    assert half.dtype == small.dtype == torch.bfloat16
    linears = [m for m in small.layers[0].modules() if isinstance(m, WeightOnlyLinear)]
    assert len(linears) == 7
    assert isinstance(small.head, WeightOnlyLinear)
    assert small.norm.weight.dtype == torch.bfloat16
    assert small.num_bytes < 0.6 * half.num_bytes  # tiny matrices have large scales
    engines = BackEngine(half), BackEngine(small)
    assert engines[1].num_fused_layers == engines[0].num_fused_layers == 4
    rows = torch.randn(9, 64, generator=torch.Generator().manual_seed(5))
    expected, got = (logits_of(engine, rows) for engine in engines)
    assert 0 < (got - expected).norm() < bound * expected.norm()


def test_codes_of_the_bundle_are_kept_widened_or_converted(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path, coded=True)
    made = {
        weights: load_back(folder, first_layer=0, device=DEVICE, weights=weights).layers[0]
        for weights in ("bf16", "int8", "fp8")
    }
    projections = {weights: one.get_submodule("mlp.up_proj") for weights, one in made.items()}
    wide, kept, fp8 = (projections[each] for each in ("bf16", "int8", "fp8"))
    assert isinstance(wide, DequantizedLinear)
    assert isinstance(kept, WeightOnlyLinear)
    assert isinstance(fp8, WeightOnlyLinear)
    assert (wide.weight.dtype, kept.codes.dtype) == (torch.bfloat16, torch.int8)
    stored = kept.codes.float() * kept.scale[:, None]
    assert torch.equal(wide.weight, stored.bfloat16())
    moved = (fp8.codes.float() * fp8.scale[:, None] - stored).abs()
    assert (moved <= torch.maximum(stored.abs() / 16, fp8.scale[:, None] / 1024) * 1.0001).all()


def test_routers_and_experts_stay_as_they_are_stored(tmp_path: Path) -> None:
    folder = saved("qwen3_moe", tmp_path)
    first = load_back(folder, first_layer=0, device=DEVICE, weights="int8").layers[0]
    small = {name for name, m in first.named_modules() if isinstance(m, WeightOnlyLinear)}
    assert small == {f"self_attn.{each}_proj" for each in "qkvo"}
    assert not any(isinstance(m, Int8Experts) for m in first.modules())
    matrices = {name for name, p in first.named_parameters() if p.ndim > 1}
    assert {name.rpartition("mlp.")[2] for name in matrices} == {
        "gate.weight",
        "experts.gate_up_proj",
        "experts.down_proj",
    }


class OnGpu:
    """What `int8_linear` asks of codes, of codes that say they are on a GPU."""

    device = torch.device("cuda")
    shape = (4, 8)


def test_int8_of_a_bundle_stays_8_bits_on_a_gpu_with_triton(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[str] = []
    for name in ("WeightOnlyLinear", "DequantizedLinear"):
        monkeypatch.setattr(int8_linear, name, lambda *_, name=name: made.append(name))
    monkeypatch.setattr(int8_linear, "why_no_weight_only", lambda _: None)
    codes, scale = OnGpu(), torch.ones(4)
    int8_linear.int8_linear(codes, scale, None, torch.bfloat16)  # type: ignore[arg-type]
    monkeypatch.setattr(int8_linear, "why_no_weight_only", lambda _: "there is no Triton")
    int8_linear.int8_linear(codes, scale, None, torch.bfloat16)  # type: ignore[arg-type]
    assert made == ["WeightOnlyLinear", "DequantizedLinear"]
    assert "8-bit weights are widened to torch.bfloat16 at load: there is no Triton" in caplog.text

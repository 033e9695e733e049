"""A checkpoint's own grid of 4 or 8 bits goes into the front as it is, with no second rounding."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from optimizer.cost.front_kernels import block_size
from optimizer.export.front.float_front import FloatFront
from optimizer.export.front.front_graph import export_front, fitting_blocks
from optimizer.export.front.layer_weights import LayerWeights
from optimizer.export.front.rounding import taken_over
from optimizer.export.sources.model_source import ModelSource, open_source
from optimizer.export.sources.packed.matrix_grid import QuantizedMatrix
from tests.optimizer.export.front.test_rounding import widened
from tests.optimizer.export.plans import make_plan
from tests.optimizer.export.sources import packing
from tests.optimizer.export.sources.test_packed import AWQ, GPTQ, opened
from tests.tiny_models import FRONT_FAMILIES, make_tiny_model


def random_grid(name: str, shape: torch.Size, bits: int) -> QuantizedMatrix:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    outputs, inputs = shape
    return QuantizedMatrix(
        bits=bits,
        codes=torch.randint(0, 1 << bits, shape, generator=generator, dtype=torch.uint8),
        scales=torch.rand(outputs, inputs // 32, generator=generator) + 0.5,
        zeros=torch.randint(
            0, 1 << bits, (outputs, inputs // 32), generator=generator, dtype=torch.uint8
        ),
    )


def on_grids(source: ModelSource, monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    """Give every matrix of the layers a random grid, and its weights."""
    own = source.read

    def grid(name: str) -> QuantizedMatrix | None:
        stored = source.stored(name)
        is_matrix = ".layers." in name and len(stored.shape) == 2 and stored.shape[1] % 32 == 0
        return random_grid(name, torch.Size(stored.shape), bits) if is_matrix else None

    def read(name: str, **options: Any) -> torch.Tensor:
        found = grid(name)
        return (
            own(name, **options)
            if found is None
            else widened(taken_over(found, 32), source.stored(name).shape[1])
        )

    monkeypatch.setattr(source, "quantized_matrix", grid)
    monkeypatch.setattr(source, "read", read)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("family", FRONT_FAMILIES)
def test_grids_are_the_matrices_joined_reordered_and_scaled(
    family: str, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny_model(family, tmp_path)
    source = open_source(tmp_path)
    on_grids(source, monkeypatch, bits)
    form = FloatFront(source, 1).form
    weights = LayerWeights(source, form, 0, torch.float32)
    matrices = {"qkv": weights.qkv(), "out": weights.out()}
    if not form.layers[0].has_experts:
        matrices |= {"down": weights.down(), **weights.gate_up()}
    taken = 0
    for name, matrix in matrices.items():
        values, grid = matrix.read(), matrix.grid()
        if grid is None:  # heads that are padded along the inputs
            assert name == "out"
            assert form.layout.size != form.layout.head_dim
            continue
        taken += 1
        torch.testing.assert_close(
            widened(taken_over(grid, 32), values.shape[1]), values.float(), rtol=1e-6, atol=1e-6
        )
    assert taken >= 1


def grouped(size: int) -> QuantizedMatrix:
    """A grid of 256 inputs whose scales and zero points change every `size` inputs."""
    groups = 256 // size
    zeros = torch.arange(groups, dtype=torch.uint8).repeat_interleave(size // 32)
    return QuantizedMatrix(
        bits=4,
        codes=torch.randint(0, 16, (8, 256), dtype=torch.uint8),
        scales=(1 + torch.arange(groups)).float().repeat_interleave(size // 32).expand(8, -1),
        zeros=zeros.expand(8, -1),
    )


@pytest.mark.parametrize(
    ("size", "wanted", "block"), [(32, 128, 32), (64, 128, 64), (128, 64, 64), (256, 128, 128)]
)
def test_groups_become_blocks_as_large_as_they_allow(size: int, wanted: int, block: int) -> None:
    grid = grouped(size)
    found = taken_over(grid, wanted)
    assert found.block == block
    torch.testing.assert_close(
        widened(found, 256), widened(taken_over(grid, 32), 256), rtol=0, atol=0
    )


def test_a_plan_keeps_small_blocks_where_the_checkpoint_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny_model("llama", tmp_path, intermediate_size=256)
    source = open_source(tmp_path)
    plan = replace(make_plan(source, 1, front_bits=4), weight_blocks="large")
    assert fitting_blocks(source, plan).weight_blocks == "large"
    on_grids(source, monkeypatch, 4)
    assert fitting_blocks(source, plan).weight_blocks == "small"
    fitted = fitting_blocks(source, replace(plan, binding=("edge memory",)))
    assert (fitted.predicted, fitted.binding) == (None, ())  # of large blocks
    other_bits = replace(plan, partition=replace(plan.partition, front_bits=8))
    assert fitting_blocks(source, other_bits).weight_blocks == "large"


def test_one_matrix_on_a_grid_is_enough_for_small_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quantized checkpoints leave some matrices alone, often those of the first layers."""
    make_tiny_model("llama", tmp_path, intermediate_size=256)
    source = open_source(tmp_path)
    plan = replace(make_plan(source, 2, front_bits=4), weight_blocks="large")
    on_grids(source, monkeypatch, 4)
    held = source.quantized_matrix
    monkeypatch.setattr(
        source,
        "quantized_matrix",
        lambda name: held(name) if "layers.1.mlp.down_proj" in name else None,
    )
    assert fitting_blocks(source, plan).weight_blocks == "small"


@pytest.mark.parametrize("blocks", ["small", "large"])
def test_a_front_has_the_blocks_of_its_plan(blocks: Any, tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path / "llama", intermediate_size=256)
    source = open_source(tmp_path / "llama")
    plan = replace(make_plan(source, 1, front_bits=4), weight_blocks=blocks)
    (tmp_path / "edge").mkdir()
    export_front(source, plan, tmp_path / "edge")
    nodes = onnx.load(tmp_path / "edge" / "front.onnx").graph.node
    found = {
        node.name.split("/")[-2]: {each.name: each.i for each in node.attribute}["block_size"]
        for node in nodes
        if node.op_type == "MatMulNBits"
    }
    geometry = source.geometry
    down = block_size(blocks, 4, is_down=True, inputs=geometry.intermediate_size)
    other = block_size(blocks, 4, is_down=False, inputs=geometry.hidden_size)
    assert (found["down_proj"], found["up_proj"]) == (down, other)
    assert blocks == "small" or down > 32


@pytest.mark.parametrize(
    ("settings", "pack", "grid", "bits"),
    [
        (GPTQ, packing.gptq, {}, 4),
        (AWQ, packing.awq, {}, 4),
        ({**GPTQ, "bits": 8}, packing.gptq, {"bits": 8}, 8),
    ],
)
def test_a_front_holds_the_checkpoints_weights_exactly(
    tmp_path: Path, settings: dict[str, Any], pack: Any, grid: dict[str, Any], bits: int
) -> None:
    make_tiny_model("llama", tmp_path / "llama")
    source, meant = opened(tmp_path / "llama", tmp_path / "m", settings, pack, **grid)
    (tmp_path / "edge").mkdir()
    export_front(source, make_plan(source, 2, front_bits=bits), tmp_path / "edge")
    held = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx.load(tmp_path / "edge" / "front.onnx").graph.initializer
    }
    for part in ("up_proj", "down_proj"):
        weight = meant[f"model.layers.1.mlp.{part}.weight"]
        name = f"model.layers.1.mlp.{part}.MatMul.weight"
        codes, scales, zeros = (held[f"{name}.{each}"] for each in ("codes", "scales", "zeros"))
        outputs, blocks = scales.shape
        if bits == 4:
            codes, zeros = (
                np.stack([each & 15, each >> 4], -1).reshape(outputs, -1) for each in (codes, zeros)
            )
        steps = codes.reshape(outputs, blocks, 32).astype(np.float64)
        steps -= zeros.reshape(outputs, -1)[:, :blocks, None]
        values = (steps * scales[..., None]).reshape(weight.shape).astype(np.float32)
        assert np.array_equal(values, weight.numpy())

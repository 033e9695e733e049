"""MXFP4 experts are read as transformers means them, and a build of them answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from optimizer.errors import ModelError
from optimizer.export.sources.checkpoint_files import WHOLE_NAME
from optimizer.export.sources.model_source import open_source
from optimizer.export.sources.packed.mxfp4 import unpacked
from tests.tiny_models import make_tiny_model

PARTS = ("gate_up_proj", "down_proj")


def blocks_of(shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Random blocks and scales of experts [E, N, K]."""
    experts, outputs, inputs = shape
    generator = torch.Generator().manual_seed(inputs)
    blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), generator=generator)
    scales = torch.randint(118, 124, (experts, outputs, inputs // 32), generator=generator)
    return blocks.to(torch.uint8), scales.to(torch.uint8)


def test_values_are_those_of_transformers() -> None:
    blocks, scales = blocks_of((3, 8, 96))
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
    assert torch.equal(unpacked(blocks, scales).transpose(1, 2), theirs.float())


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, Any]:
    """A tiny gpt-oss whose experts are packed, and the model with the same weights."""
    whole: Any = make_tiny_model("gpt_oss", tmp_path / "m")
    path = tmp_path / "m" / WHOLE_NAME
    tensors = load_file(path)
    for name, parameter in whole.named_parameters():
        if not name.endswith(PARTS):
            continue
        experts, inputs, outputs = parameter.shape
        blocks, scales = blocks_of((experts, outputs, inputs))
        del tensors[name]
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = blocks, scales
        parameter.data = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16).float()
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": []}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    return tmp_path / "m", whole


def test_a_packed_gpt_oss_is_the_model_that_its_blocks_mean(folder: tuple[Path, Any]) -> None:
    path, whole = folder
    source = open_source(path)
    meant = whole.state_dict()
    assert set(source.tensor_names) == set(meant)
    for name, tensor in meant.items():
        assert torch.equal(source.read(name).float(), tensor), name


def test_blocks_without_scales_are_refused(folder: tuple[Path, Any]) -> None:
    path, _ = folder
    tensors = load_file(path / WHOLE_NAME)
    del tensors["model.layers.1.mlp.experts.down_proj_scales"]
    save_file(tensors, path / WHOLE_NAME, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.experts\.down_proj_scales is missing"):
        assert open_source(path).tensor_names


def test_a_scale_that_is_no_number_is_refused(folder: tuple[Path, Any]) -> None:
    path, _ = folder
    tensors = load_file(path / WHOLE_NAME)
    name = "model.layers.1.mlp.experts.down_proj_scales"
    tensors[name][0, 0, 0] = 255
    save_file(tensors, path / WHOLE_NAME, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="down_proj holds NaN"):
        open_source(path).read("model.layers.1.mlp.experts.down_proj", fits=torch.float32)

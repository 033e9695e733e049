"""The back's files hold exactly the back, at the precision asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from optimizer.export import back
from optimizer.export.back import quantize_rows, write_back
from optimizer.export.sources.model_source import ModelSource, open_source
from tests.optimizer.export.plans import make_plan
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = tmp_path_factory.mktemp("tied")
    make_tiny_model("llama", folder)
    return open_source(folder)


def written(source: ModelSource, folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    write_back(source, make_plan(source, 3, **changes), folder)
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


@pytest.mark.parametrize("back_start", [0, 1, 3])
def test_the_back_is_its_layers_the_norm_and_the_head(
    tied: ModelSource, tmp_path: Path, back_start: int
) -> None:
    tensors = written(tied, tmp_path, back_start=back_start)
    layers = {int(name.split(".")[2]) for name in tensors if ".layers." in name}
    assert layers == set(range(back_start, 4))
    others = {name for name in tensors if ".layers." not in name}
    assert others == {"model.norm.weight", "lm_head.weight"}
    assert torch.equal(tensors.pop("lm_head.weight"), tied.read("model.embed_tokens.weight"))
    assert all(torch.equal(tensor, tied.read(name)) for name, tensor in tensors.items())


def test_an_untied_head_is_its_own(tmp_path: Path) -> None:
    make_tiny_model("phi3", tmp_path / "model")
    source = open_source(tmp_path / "model")
    (tmp_path / "back").mkdir()
    tensors = written(source, tmp_path / "back")
    assert torch.equal(tensors["lm_head.weight"], source.read("lm_head.weight"))
    assert "model.embed_tokens.weight" not in tensors


def test_sixteen_bits_are_bfloat16_matrices_and_float32_norms(
    tied: ModelSource, tmp_path: Path
) -> None:
    tensors = written(tied, tmp_path, back_bits=16)
    for name, tensor in tensors.items():
        assert tensor.dtype == (torch.float32 if tensor.ndim == 1 else torch.bfloat16), name


def test_eight_bits_are_rows_within_half_a_step(tied: ModelSource, tmp_path: Path) -> None:
    tensors = written(tied, tmp_path, back_bits=8)
    names = [name.removesuffix(".int8") for name in tensors if name.endswith(".int8")]
    assert len(names) == 7 + 1  # one layer's matrices and the head
    for name in names:
        original = tied.read(name if name in tied.tensor_names else "model.embed_tokens.weight")
        codes, scale = tensors[f"{name}.int8"], tensors[f"{name}.scale"]
        assert (codes.dtype, codes.shape) == (torch.int8, original.shape)
        assert (scale.dtype, scale.shape) == (torch.float32, original.shape[:1])
        error = (codes * scale[:, None] - original).abs().amax(dim=1)
        assert bool((error <= scale * 0.5001).all()), name


def test_quantized_rows_match_a_plain_loop() -> None:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    weight[2] = 0
    codes, scale = quantize_rows(weight)
    for row in range(5):
        largest = max(abs(value) for value in weight[row].tolist())
        assert scale[row].item() == pytest.approx(largest / 127)
        for column in range(7):
            exact = weight[row, column].item() / (largest / 127) if largest else 0.0
            assert abs(codes[row, column].item() - exact) <= 0.5 + 1e-4


def test_the_config_is_the_whole_models(tied: ModelSource, tmp_path: Path) -> None:
    written(tied, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_hidden_layers"] == 4
    assert config["architectures"] == ["LlamaForCausalLM"]


def test_a_large_back_is_cut_into_shards(
    tied: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = written(tied, tmp_path)
    monkeypatch.setattr(back, "SHARD_BYTES", 100_000)
    (tmp_path / "sharded").mkdir()
    sharded = written(tied, tmp_path / "sharded")
    paths = list((tmp_path / "sharded").glob("*.safetensors"))
    assert len(paths) > 1
    assert sharded.keys() == whole.keys()
    assert all(np.array_equal(sharded[name], whole[name]) for name in whole)

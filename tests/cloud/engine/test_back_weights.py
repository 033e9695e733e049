"""Loading a back: only what is asked for, and every defect named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from cloud.engine.back_engine import BackEngine, BatchEntry
from cloud.engine.back_weights import load_back
from cloud.engine.rotary import max_positions
from cloud.errors import WeightsError
from cloud.kv.pool import KvPool
from tests.cloud.tiny_bundle import save_back
from tests.tiny_models import make_tiny_model


@pytest.fixture
def back(tmp_path: Path) -> Path:
    save_back(make_tiny_model("llama", tmp_path / "source"), tmp_path / "cloud", first_layer=2)
    return tmp_path / "cloud"


def change(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    path = folder / "back-00001.safetensors"
    stored = load_file(path)
    del stored[name]
    if tensor is not None:
        stored[name] = tensor
    save_file(stored, path)


def test_only_the_back_is_loaded(back: Path) -> None:
    model = load_back(back, first_layer=2)
    assert (model.first_layer, model.num_layers, len(model.layers)) == (2, 4, 2)
    stored = load_file(back / "back-00001.safetensors")
    assert model.num_bytes == sum(4 * tensor.numel() for tensor in stored.values())


def test_a_missing_tensor_is_named(back: Path) -> None:
    change(back, "model.layers.3.mlp.up_proj.weight", None)
    with pytest.raises(WeightsError, match=r"model\.layers\.3\.mlp\.up_proj\.weight is missing"):
        load_back(back, first_layer=2)
    with pytest.raises(WeightsError, match=r"model\.layers\.1\..* is missing"):
        load_back(back, first_layer=1)


def test_a_wrong_shape_is_named_with_both_shapes(back: Path) -> None:
    change(back, "model.norm.weight", torch.zeros(65))
    with pytest.raises(WeightsError, match=r"model\.norm\.weight .*\(65,\).*\(64,\)"):
        load_back(back, first_layer=2)


def test_a_damaged_file_is_named(back: Path) -> None:
    path = back / "back-00001.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"back-00001\.safetensors: not readable"):
        load_back(back, first_layer=2)


def test_an_unsupported_model_is_refused_with_the_supported_ones(back: Path) -> None:
    config = json.loads((back / "config.json").read_text())
    (back / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(WeightsError, match=r"'gpt2' are not supported.*llama.*phi3"):
        load_back(back, first_layer=2)


def test_bfloat16_weights_are_computed_in_float32_on_a_cpu(back: Path) -> None:
    path = back / "back-00001.safetensors"
    halves = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(halves, path)
    half = BackEngine.load(back, first_layer=2)
    save_file({name: tensor.float() for name, tensor in halves.items()}, path)
    full = BackEngine.load(back, first_layer=2)
    rows = torch.randn(9, 64)
    pool = KvPool(half.kv_shape, limit_bytes=1 << 20)
    answers = []
    for engine in (half, full):
        with pool.lease(split=2, max_tokens=9) as lease:
            answers += engine.forward([BatchEntry(lease=lease, rows=rows, num_logits=9)])
    assert answers[0].dtype == torch.float32
    assert torch.equal(answers[0], answers[1])


def test_sessions_stay_within_the_length_at_which_rotary_frequencies_are_constant() -> None:
    plain = transformers.LlamaConfig(max_position_embeddings=4096)
    assert max_positions(plain) == 4096
    half = 32
    long = transformers.AutoConfig.for_model(
        "phi3",
        max_position_embeddings=4096,
        original_max_position_embeddings=1024,
        hidden_size=128,
        num_attention_heads=2,
        num_key_value_heads=2,
        rope_scaling={
            "type": "longrope",
            "short_factor": [1.0] * half,
            "long_factor": [2.0] * half,
        },
    )
    assert max_positions(long) == 1024


def test_only_the_weight_files_that_are_named_are_read(back: Path) -> None:
    listed = back / "back-00001.safetensors"
    zeros = {name: tensor * 0 for name, tensor in load_file(listed).items()}
    save_file(zeros, back / "zzz.safetensors")
    model = load_back(back, first_layer=2, weight_files=[listed])
    assert all(parameter.abs().sum() > 0 for parameter in model.norm.parameters())
    with pytest.raises(WeightsError, match=r"zzz\.safetensors: another file holds"):
        load_back(back, first_layer=2)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[]",
        '{"model_type": "llama", "model_type": "llama"}',
        '{"model_type": "llama", "num_hidden_layers": 1000000000}',
        '{"model_type": "llama", "num_hidden_layers": "four"}',
        '{"model_type": "llama", "hidden_size": 1e999}',
        '{"model_type": "llama", "hidden_size": -64, "num_hidden_layers": 4}',
        '{"model_type": "llama", "rope_parameters": 7}',
        '{"model_type": ["llama"]}',
        '{"model_type": "llama", "auto_map": {"AutoConfig": "evil.Config"}}',
    ],
)
def test_a_hostile_config_is_named(back: Path, text: str) -> None:
    (back / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config\.json|is missing|has shape") as caught:
        load_back(back, first_layer=2)
    assert "\n" not in str(caught.value)

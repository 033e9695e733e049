"""A LoRA adapter gives the weights that peft would merge; others are refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from optimizer.errors import ModelError
from optimizer.export.sources.adapter import CONFIG_NAME, WEIGHTS_NAME
from optimizer.export.sources.model_source import ModelSource, open_source
from splitpoint.cli import main
from tests.optimizer.export.sources import packing
from tests.optimizer.export.sources.checkpoints import as_gguf
from tests.tiny_models import make_tiny_model

QUERY = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.2.mlp.down_proj"
SHAPES = {QUERY: (64, 64), DOWN: (64, 96)}
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "tiny/llama",
    "r": 4,
    "lora_alpha": 10,
    "bias": "none",
    "fan_in_fan_out": False,
    "target_modules": ["q_proj", "down_proj"],
    "use_rslora": False,
    "init_lora_weights": True,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "llama"
    make_tiny_model("llama", path)
    return path


def matrices(ranks: dict[str, int] | None = None) -> dict[str, torch.Tensor]:
    """A and B of both modules, as peft names them."""
    rng = torch.Generator().manual_seed(11)
    out = {}
    for module, (outputs, inputs) in SHAPES.items():
        rank = (ranks or {}).get(module, 4)
        stem = f"base_model.model.{module}"
        out[f"{stem}.lora_A.weight"] = torch.randn(rank, inputs, generator=rng)
        out[f"{stem}.lora_B.weight"] = torch.randn(outputs, rank, generator=rng)
    return out


def adapter(out: Path, tensors: dict[str, torch.Tensor] | None = None, **settings: Any) -> Path:
    """An adapter's folder."""
    out.mkdir()
    (out / CONFIG_NAME).write_text(json.dumps({**CONFIG, **settings}))
    save_file(matrices() if tensors is None else tensors, out / WEIGHTS_NAME)
    return out


def check_merged(source: ModelSource, base: ModelSource, scales: dict[str, float]) -> None:
    """Both weights changed as the definition says, all others as they were."""
    tensors = matrices()
    for name in base.tensor_names:
        module = name.removesuffix(".weight")
        expected = base.read(name)
        if module in scales:
            up = tensors[f"base_model.model.{module}.lora_A.weight"].double()
            down = tensors[f"base_model.model.{module}.lora_B.weight"].double()
            expected = (expected.double() + scales[module] * down @ up).float()
        torch.testing.assert_close(source.read(name), expected, rtol=1e-5, atol=1e-5)
        assert (module in scales) == (not torch.equal(source.read(name), base.read(name)))


@pytest.mark.parametrize(
    ("settings", "scales"),
    [
        ({}, {QUERY: 2.5, DOWN: 2.5}),
        ({"use_rslora": True}, {QUERY: 5.0, DOWN: 5.0}),
        ({"alpha_pattern": {"down_proj": 2}}, {QUERY: 2.5, DOWN: 0.5}),
        ({"alpha_pattern": {r"layers\.0\..*q_proj": 2}}, {QUERY: 0.5, DOWN: 2.5}),
        ({"fan_in_fan_out": True}, {QUERY: 2.5, DOWN: 2.5}),
    ],
)
def test_the_weights_are_those_that_peft_merges(
    folder: Path, tmp_path: Path, settings: dict[str, Any], scales: dict[str, float]
) -> None:
    source = open_source(folder, adapter(tmp_path / "a", **settings))
    check_merged(source, open_source(folder), scales)
    state = source.load_model().state_dict()
    assert torch.equal(state[f"{QUERY}.weight"], source.read(f"{QUERY}.weight"))
    assert source.geometry == open_source(folder).geometry


def test_ranks_may_differ_by_module(folder: Path, tmp_path: Path) -> None:
    tensors = matrices({DOWN: 8})
    path = adapter(tmp_path / "a", tensors, rank_pattern={"down_proj": 8})
    base = open_source(folder)
    source = open_source(folder, path)
    stem = f"base_model.model.{DOWN}"
    change = tensors[f"{stem}.lora_B.weight"] @ tensors[f"{stem}.lora_A.weight"] * (10 / 8)
    name = f"{DOWN}.weight"
    torch.testing.assert_close(source.read(name), base.read(name) + change)
    assert math.isclose(source._adapter.changes[name].scale, 1.25)  # type: ignore[attr-defined]


def test_the_hash_covers_model_settings_and_weights(folder: Path, tmp_path: Path) -> None:
    other = {name: tensor + 1 for name, tensor in matrices().items()}
    hashes = {
        open_source(folder).sha256,
        open_source(folder, adapter(tmp_path / "a")).sha256,
        open_source(folder, adapter(tmp_path / "b", lora_alpha=11)).sha256,
        open_source(folder, adapter(tmp_path / "c", other)).sha256,
    }
    assert len(hashes) == 4
    again = open_source(folder, adapter(tmp_path / "copy"))
    assert again.sha256 in hashes
    assert again.id == "llama+copy"


def test_it_merges_into_packed_weights_which_then_fit_no_grid(folder: Path, tmp_path: Path) -> None:
    def pack(name: str, shape: tuple[int, int]) -> Any:
        matrix = packing.random_grid(shape)
        return packing.gptq(matrix), matrix.weight()

    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    packing.packed_copy(folder, tmp_path / "m", settings, pack)
    tensors = {name.replace("layers.0", "layers.1"): t for name, t in matrices().items()}
    base = open_source(tmp_path / "m")
    source = open_source(tmp_path / "m", adapter(tmp_path / "a", tensors))
    name = "model.layers.1.self_attn.q_proj.weight"
    assert base.quantized_matrix(name) is not None
    assert source.quantized_matrix(name) is None
    assert source.quantized_matrix(name.replace("q_proj", "k_proj")) is not None
    assert not torch.equal(source.read(name), base.read(name))


def test_it_merges_into_gguf(folder: Path, tmp_path: Path) -> None:
    path = as_gguf(folder, tmp_path / "m.gguf")
    check_merged(
        open_source(path, adapter(tmp_path / "a")), open_source(path), {QUERY: 2.5, DOWN: 2.5}
    )


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"peft_type": "IA3"}, "'IA3' are not merged"),
        ({"use_dora": True}, "DoRA is not merged"),
        ({"lora_bias": True}, "LoRA with biases"),
        ({"bias": "all"}, "trains biases"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4 belongs to a changed base"),
        ({"r": 8}, "not of rank 8"),
        ({"r": 0}, "r must be above 0"),
        ({"lora_alpha": None}, "lora_alpha must be above 0"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(
    folder: Path, tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelError, match=reason) as refused:
        open_source(folder, adapter(tmp_path / "a", **settings))
    assert "\n" not in str(refused.value)


def renamed(old: str, new: str) -> dict[str, torch.Tensor]:
    return {name.replace(old, new): tensor for name, tensor in matrices().items()}


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (
            renamed("layers.2", "layers.7"),
            "has no model.layers.7.mlp.down_proj.weight; the adapter",
        ),
        (renamed("q_proj", "k_proj"), "k_proj.weight is .32, 64.; the adapter is of another model"),
        (renamed("lora_A.weight", "lora_embedding_A"), "not a matrix of LoRA for a linear layer"),
        (renamed(".lora_A", ".lora_magnitude_vector"), "not a matrix of LoRA"),
        (dict(list(matrices().items())[1:]), "its other half is missing"),
        ({}, "holds no tensors"),
    ],
)
def test_an_adapter_of_another_model_or_kind_is_refused(
    folder: Path, tmp_path: Path, tensors: dict[str, torch.Tensor], reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        open_source(folder, adapter(tmp_path / "a", tensors))


def test_values_that_are_not_finite_are_refused(folder: Path, tmp_path: Path) -> None:
    tensors = {name: tensor * float("nan") for name, tensor in matrices().items()}
    source = open_source(folder, adapter(tmp_path / "a", tensors))
    with pytest.raises(ModelError, match=r"lora_A\.weight holds NaN"):
        source.read(f"{QUERY}.weight")


def test_a_folder_without_an_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no adapter here"):
        open_source(folder, tmp_path)
    (tmp_path / CONFIG_NAME).write_text(json.dumps(CONFIG))
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is missing"):
        open_source(folder, tmp_path)


def test_build_merges_it_and_the_bundle_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = adapter(tmp_path / "a")
    arguments = ["build", "--model", str(folder), "--split", "2", "--no-calibrate"]
    out = tmp_path / "bundle"
    assert main([*arguments, "--adapter", str(path), "--out", str(out)]) == 0
    assert "made for tiny/llama" in capsys.readouterr().err
    plan = (out / "plan.yaml").read_text()
    assert open_source(folder, path).sha256 in plan
    back = load_file(out / "cloud" / "back-00001.safetensors")
    merged = open_source(folder, path).read(f"{DOWN}.weight")
    assert torch.equal(back[f"{DOWN}.weight"], merged)
    wrong = adapter(tmp_path / "b", use_dora=True)
    out = tmp_path / "other"
    assert main([*arguments, "--adapter", str(wrong), "--out", str(out)]) == 1
    assert not out.exists()
    assert "DoRA" in capsys.readouterr().err

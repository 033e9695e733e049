"""Published heads are read as they come; whatever is wrong with one is said in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cloud.drafting.head_spec import HeadWeights, read_head
from cloud.errors import WeightsError
from tests.cloud.drafting.heads import head_tensors, write_head


def read(folder: Path) -> HeadWeights:
    weights = read_head(folder, hidden_size=64, vocab_size=320, num_layers=4)
    assert isinstance(weights, HeadWeights)
    return weights


def test_an_eagle_head_reads_the_last_state_and_has_the_models_vocabulary(tmp_path: Path) -> None:
    weights = read(write_head(tmp_path, "eagle"))
    assert (weights.spec.form, weights.spec.layers, weights.spec.vocab_size) == ("eagle", (4,), 320)
    assert weights.token_ids is None
    assert weights.embedding is not None
    assert "fc.weight" in weights.tensors


def test_an_eagle3_head_names_its_layers_and_tokens(tmp_path: Path) -> None:
    weights = read(write_head(tmp_path, "eagle3"))
    assert (weights.spec.form, weights.spec.layers) == ("eagle3", (2, 3, 4))
    assert weights.token_ids is not None
    assert len(weights.token_ids) == weights.spec.vocab_size == 64
    assert bool((weights.token_ids.diff() > 0).all())


def test_where_the_layers_are_not_named_they_are_the_published_ones(tmp_path: Path) -> None:
    folder = write_head(tmp_path, "eagle3")
    config = json.loads((folder / "config.json").read_text())
    del config["eagle_aux_hidden_state_layer_ids"]
    (folder / "config.json").write_text(json.dumps(config))
    weights = read_head(folder, hidden_size=64, vocab_size=320, num_layers=8)
    assert isinstance(weights, HeadWeights)
    assert weights.spec.layers == (2, 4, 5)


def test_names_with_other_prefixes_and_biases_are_read(tmp_path: Path) -> None:
    tensors = head_tensors("eagle", 64, 320)
    for name, rows in (("q", 64), ("k", 32), ("v", 32)):
        tensors[f"layers.0.self_attn.{name}_proj.bias"] = torch.zeros(rows)
    renamed = {f"model.{name}": one for name, one in tensors.items()}
    weights = read(write_head(tmp_path, "eagle", tensors=renamed))
    assert "self_attn.k_proj.bias" in weights.tensors


def changed(form: str, **changes: Any) -> dict[str, torch.Tensor]:
    """Tensors with some replaced; None takes one away. `_` stands for a dot."""
    tensors = head_tensors(form, 64, 320)
    for name, value in changes.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    return tensors


BAD_TENSORS: list[tuple[str, dict[str, Any], str]] = [
    ("eagle", {"fc.weight": None}, "no fc.weight"),
    ("eagle", {"fc.weight": torch.zeros(64, 64)}, "fc.weight has shape"),
    ("eagle", {"layers.0.mlp.up_proj.weight": None}, "is missing|up_proj"),
    ("eagle", {"layers.1.mlp.up_proj.weight": torch.zeros(4, 4)}, "no tensor of an EAGLE"),
    ("eagle", {"layers.0.self_attn.q_proj.bias": torch.zeros(64)}, "is missing|k_proj"),
    ("eagle", {"fc.weight": torch.full((64, 128), torch.nan)}, "not finite"),
    ("eagle", {"embed_tokens.weight": torch.zeros(10, 64)}, "embed_tokens.weight has shape"),
    ("eagle3", {"d2t": torch.arange(64) + 300}, "tokens that the model has not"),
    ("eagle3", {"d2t": torch.zeros(64)}, "not whole numbers"),
    ("eagle3", {"d2t": None}, "without d2t"),
    ("eagle3", {"norm.weight": None}, "is missing|norm"),
    ("eagle", {"model.fc.weight": torch.zeros(64, 128)}, "the same tensor"),
    ("eagle", {"model.layers.61.eh_proj.weight": torch.zeros(4, 4)}, "layers of None are not read"),
]


@pytest.mark.parametrize(("form", "changes", "wrong"), BAD_TENSORS)
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, form: str, changes: dict[str, Any], wrong: str
) -> None:
    folder = write_head(tmp_path, form, tensors=changed(form, **changes))
    with pytest.raises(WeightsError, match=wrong) as caught:
        read(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"hidden_size": 128}, "width 128, the model's is 64"),
        ({"num_attention_heads": 3}, "3 heads"),
        ({"head_dim": 15}, "15 channels"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps"),
        ({"intermediate_size": True}, "intermediate_size is True"),
        ({"intermediate_size": 1 << 40}, "intermediate_size"),
        ({"eagle_aux_hidden_state_layer_ids": [2, 9, 4]}, "reads states at layers"),
        ({"eagle_aux_hidden_state_layer_ids": []}, "reads states at layers"),
        ({"rope_scaling": {"rope_type": "nonsense"}}, "rotary|nonsense"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, Any], wrong: str
) -> None:
    with pytest.raises(WeightsError, match=wrong):
        read(write_head(tmp_path, "eagle3", **changes))


def test_a_folder_without_a_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="config"):
        read(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match="not a JSON object"):
        read(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(WeightsError, match="may hold code"):
        read(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"no fc\.weight"):
        read(tmp_path)

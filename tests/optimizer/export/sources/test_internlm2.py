"""An InternLM2 checkpoint is read as the Llama that computes the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from optimizer.errors import ModelError
from optimizer.export.sources.checkpoint_files import WHOLE_NAME
from optimizer.export.sources.model_source import open_source
from tests.tiny_models import make_tiny_model

NAMES = {
    "embed_tokens": "tok_embeddings",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
CONFIG = {
    "architectures": ["InternLM2ForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"},
    "model_type": "internlm2",
    "bias": False,
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "linear", "factor": 2.0},
}


def packed(folder: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A Llama's tensors as InternLM2 names and packs them: group by group, row by row."""
    out: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        found = name
        for llama, theirs in NAMES.items():
            found = found.replace(f".{llama}.", f".{theirs}.")
        out[found.replace("lm_head.", "output.")] = tensor
    for layer in range(4):
        prefix = f"model.layers.{layer}."
        q, k, v = (out.pop(f"{prefix}self_attn.{p}_proj.weight") for p in "qkv")
        rows = []
        for group in range(2):  # two query heads of 16 channels share a KV head
            for head in (2 * group, 2 * group + 1):
                rows.append(q[16 * head : 16 * head + 16])
            rows.append(k[16 * group : 16 * group + 16])
            rows.append(v[16 * group : 16 * group + 16])
        out[f"{prefix}attention.wqkv.weight"] = torch.cat(rows)
    return out


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, Any]:
    changes = {
        "head_dim": 16,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
    }
    whole = make_tiny_model("llama", tmp_path / "m", **changes)
    path = tmp_path / "m" / WHOLE_NAME
    save_file(packed(tmp_path / "m", load_file(path)), path, metadata={"format": "pt"})
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config.pop("rope_parameters")
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, **CONFIG}))
    return tmp_path / "m", whole


def test_every_weight_is_llamas(folder: tuple[Path, Any]) -> None:
    path, whole = folder
    source = open_source(path)
    meant = whole.state_dict()
    assert set(source.tensor_names) == set(meant)
    for name, tensor in meant.items():
        assert torch.equal(source.read(name).float(), tensor), name


def test_it_answers_as_the_llama_does(folder: tuple[Path, Any]) -> None:
    path, whole = folder
    model = open_source(path).load_model()
    ids = torch.tensor([[5, 9, 200, 31, 7]])
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, whole(ids).logits)


def test_heads_of_another_model_are_refused(folder: tuple[Path, Any]) -> None:
    path, _ = folder
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "num_key_value_heads": 4}))
    with pytest.raises(ModelError, match=r"wqkv.*asks for \[192, 64\]"):
        open_source(path).read("model.layers.0.self_attn.q_proj.weight")

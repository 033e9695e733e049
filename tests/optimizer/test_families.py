"""A model of a kind that is not supported is refused with a line that says what is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from optimizer.errors import ModelError
from optimizer.export.sources.model_source import open_source
from optimizer.families import SUPPORTED

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def save_model(config: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_another_family_is_refused_with_the_list_of_families(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)
    source = open_source(save_model(config, tmp_path))
    with pytest.raises(ModelError) as refused:
        _ = source.geometry
    message = str(refused.value)
    assert "GPT2LMHeadModel" in message
    assert all(name.removesuffix("ForCausalLM") in message for name in SUPPORTED)
    assert "\n" not in message


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_position_scaling_that_would_come_out_wrong_is_refused(tmp_path: Path, kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}
    config = transformers.LlamaConfig(**SIZES, rope_parameters=rope)
    source = open_source(save_model(config, tmp_path))
    with pytest.raises(ModelError, match=rf"{kind} position scaling .*default, llama3"):
        _ = source.geometry


def test_heads_that_the_devices_kernels_refuse_are_refused_here(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**{**SIZES, "hidden_size": 16})
    source = open_source(save_model(config, tmp_path))
    with pytest.raises(ModelError, match=r"heads of 8 channels .* multiple of 16"):
        _ = source.geometry

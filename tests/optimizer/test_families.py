"""The table of families says what transformers' models are like; others are refused in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from optimizer.errors import ModelError
from optimizer.export.sources.model_source import open_source
from optimizer.families import FAMILIES, ModelFamily, back_family, family_of, front_family
from tests.tiny_models import COMMON, CONFIGS

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


def tiny_config(family: ModelFamily) -> Any:
    """The family's tiny config, with its architecture."""
    values = {**COMMON, **CONFIGS[family.name]}
    config: Any = transformers.AutoConfig.for_model(family.model_type, **values)
    config.architectures = [family.architecture]
    return config


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> ModelFamily:
    found: ModelFamily = request.param
    return found


def test_a_familys_class_and_type_are_transformers_own(family: ModelFamily) -> None:
    config = tiny_config(family)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert type(model).__name__ == family.architecture
    assert family_of(config) is family


def test_what_is_special_of_a_family_is_so_in_transformers_layers(family: ModelFamily) -> None:
    config = tiny_config(family)
    layer: Any = transformers.AutoModelForCausalLM.from_config(config).model.layers[0]
    attention = layer.self_attn
    norms = [
        name
        for name, module in layer.named_modules()
        if type(module).__name__.endswith("Norm") or name.endswith("_norm")
    ]
    assert (len(norms) > 2) == family.extra_norms
    assert hasattr(attention, "qkv_proj") == family.fused_projections
    assert hasattr(config, "sliding_window") == family.sliding_windows
    assert hasattr(config, "attn_logit_softcapping") >= family.soft_caps
    if not family.fused_projections:
        assert (attention.q_proj.bias is not None) == family.always_attention_bias
    rows = torch.ones(1, config.hidden_size)
    norm: nn.Module = layer.input_layernorm
    nn.init.zeros_(norm.weight)  # type: ignore[arg-type]
    assert bool(norm(rows).any()) == family.offset_norms


def test_a_familys_embedding_is_scaled_where_the_table_says_so(family: ModelFamily) -> None:
    config = tiny_config(family)
    model: Any = transformers.AutoModelForCausalLM.from_config(config).model
    ids = torch.tensor([[5, 9]])
    with torch.inference_mode():
        entering = model(ids, output_hidden_states=True).hidden_states[0]
    rows = nn.functional.embedding(ids, model.embed_tokens.weight)
    factor = config.hidden_size**0.5 if family.scales_embedding else 1.0
    torch.testing.assert_close(entering, rows * factor)


def test_each_side_takes_the_families_that_it_supports(family: ModelFamily) -> None:
    config = tiny_config(family)
    for supported, check in ((family.on_front, front_family), (family.on_back, back_family)):
        if supported:
            assert check(config) is family
        else:
            with pytest.raises(ModelError, match="not supported"):
                check(config)


def test_every_family_has_a_tiny_model() -> None:
    assert set(CONFIGS) == {family.name for family in FAMILIES}


def test_another_family_is_refused_with_the_list_of_families(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)
    source = open_source(save_model(config, tmp_path))
    with pytest.raises(ModelError) as refused:
        _ = source.geometry
    message = str(refused.value)
    assert "GPT2LMHeadModel" in message
    for family in FAMILIES:
        assert (family.architecture.removesuffix("ForCausalLM") in message) == family.on_front
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


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "gemma2"])
@pytest.mark.parametrize("where", ["the config", "rope_parameters"])
def test_a_share_of_rotated_channels_is_refused_where_the_family_has_none(
    name: str, where: str
) -> None:
    """transformers takes no notice of it there, and the exporter does: wrong rows, no error."""
    family = next(known for known in FAMILIES if known.name == name)
    config = tiny_config(family)
    if where == "the config":
        config.partial_rotary_factor = 0.5
    else:
        config.rope_parameters = {**(config.rope_parameters or {}), "partial_rotary_factor": 0.5}
    with pytest.raises(ModelError, match=r"partial_rotary_factor 0\.5 is not supported"):
        front_family(config)


@pytest.mark.parametrize(
    ("head_dim", "share", "is_right"),
    [(16, 0.5, False), (64, 0.3, False), (64, 0.0, False), (64, -0.5, False), (64, 1.5, False),
     (64, float("nan"), False), (32, 0.5, True), (64, 0.75, True), (128, 0.75, True),
     (16, 1.0, True)],
)  # fmt: skip
def test_phi_rotates_what_the_devices_kernel_can(
    head_dim: int, share: float, is_right: bool
) -> None:
    family = next(known for known in FAMILIES if known.name == "phi3")
    config = tiny_config(family)
    config.head_dim = head_dim
    config.rope_parameters = {"rope_type": "default", "partial_rotary_factor": share}
    if is_right:
        assert front_family(config) is family
    else:
        with pytest.raises(ModelError, match=rf"of {head_dim} channels of a head.*multiple of 16"):
            front_family(config)


def test_a_model_that_looks_ahead_is_refused() -> None:
    config = tiny_config(FAMILIES[0])
    config.is_causal = False
    with pytest.raises(ModelError, match="looks ahead"):
        front_family(config)

"""The table of families says what transformers' models are like; others are refused in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from optimizer.errors import ModelError
from optimizer.export.sources.config_geometry import geometry_of
from optimizer.export.sources.model_source import open_source
from optimizer.families import (
    FAMILIES,
    ModelFamily,
    back_family,
    family_of,
    front_family,
    position_limit,
)
from tests.tiny_models import COMMON, CONFIGS, FAMILY_OF


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
    decoder: Any = transformers.AutoModelForCausalLM.from_config(config).model
    layer = decoder.layers[0]
    attention = layer.self_attn
    names = {name for name, _ in layer.named_children()}
    norms = family.norms
    listed = (norms.before_attention, norms.after_attention, norms.before_mlp, norms.after_mlp)
    assert {name for name in names if "norm" in name} == {name for name in listed if name}
    assert {
        name for name, _ in attention.named_children() if "proj" in name or name == "dense"
    } == (set(family.attention))
    parts = {name for name, _ in getattr(layer, family.mlp_module).named_children()}
    if family.experts is None:
        assert set(family.mlp) <= parts
    else:
        assert parts == {family.experts.router, "experts"}
    assert hasattr(attention, "q_norm") == (family.query_key_norms is not None)
    if family.query_key_norms is not None:
        width = config.num_attention_heads * attention.head_dim
        per_head = family.query_key_norms == "head"
        assert attention.q_norm.weight.shape[0] == (attention.head_dim if per_head else width)
    assert hasattr(config, "sliding_window") >= family.sliding_windows
    assert hasattr(config, "attn_logit_softcapping") >= family.soft_caps
    assert hasattr(config, "residual_multiplier") == family.multipliers
    assert isinstance(getattr(decoder, family.final_norm), nn.Module)
    biases = {**CONFIGS[family.name]}.keys() & {"attention_bias", "use_bias"}
    if not family.fused_projections and not biases and family.name not in ("glm", "starcoder2"):
        assert (attention.q_proj.bias is not None) == family.always_attention_bias


def test_a_familys_last_norm_is_of_its_kind(family: ModelFamily) -> None:
    config = tiny_config(family)
    norm: Any = getattr(
        transformers.AutoModelForCausalLM.from_config(config).model, family.final_norm
    )
    rows = torch.ones(1, config.hidden_size) + torch.randn(1, config.hidden_size)
    takes_mean_off = bool(norm(rows + 100).abs().max() < 50) and not bool(
        torch.allclose(norm(rows + 100), norm(rows * 0 + 100), atol=0.1)
    )
    assert takes_mean_off == (family.norm_kind == "layer")
    if getattr(norm, "weight", None) is not None:
        nn.init.zeros_(norm.weight)
        assert bool(norm(rows).any()) == family.offset_norms


def test_a_familys_embedding_is_scaled_where_the_table_says_so(family: ModelFamily) -> None:
    config = tiny_config(family)
    model: Any = transformers.AutoModelForCausalLM.from_config(config).model
    ids = torch.tensor([[5, 9]])
    with torch.inference_mode():
        entering = model(ids, output_hidden_states=True).hidden_states[0]
    rows = nn.functional.embedding(ids, model.embed_tokens.weight)
    torch.testing.assert_close(entering, rows * (family.embedding_factor(config) or 1.0))


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


def test_position_scaling_that_nobody_knows_is_refused() -> None:
    config = tiny_config(FAMILIES[0])
    config.rope_parameters = {"rope_type": "spiral", "rope_theta": 1e4}
    with pytest.raises(ModelError, match=r"spiral position scaling .*default, linear"):
        front_family(config)


@pytest.mark.parametrize("kind", ["lfm2", "qwen3_5_text", "granitemoehybrid"])
def test_a_model_with_a_recurrent_state_is_refused_with_the_reason(kind: str) -> None:
    config = transformers.AutoConfig.for_model(kind)
    config.architectures = ["SomethingForCausalLM"]
    for check in (front_family, back_family):
        with pytest.raises(ModelError, match="recurrent state"):
            check(config)


def test_a_checkpoint_that_transformers_computes_as_another_model_is_refused() -> None:
    config = transformers.AutoConfig.for_model("exaone4")
    config.architectures = ["LlamaForCausalLM"]
    with pytest.raises(ModelError, match="model_type 'exaone4'"):
        front_family(config)


def test_a_context_ends_where_positions_would_get_other_frequencies() -> None:
    config = tiny_config(FAMILY_OF["phi3"])
    assert position_limit(config) == 256
    config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 64}
    config.original_max_position_embeddings = 64
    assert position_limit(config) == 64
    assert geometry_of(config).context_length == 64


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "gemma2"])
@pytest.mark.parametrize("where", ["the config", "rope_parameters"])
def test_a_share_of_rotated_channels_is_refused_where_the_family_has_none(
    name: str, where: str
) -> None:
    """transformers takes no notice of it in some kinds of scaling, and fails in others."""
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
    [(16, 0.5, True), (64, 0.3, False), (64, 0.0, False), (64, -0.5, False), (64, 1.5, False),
     (64, float("nan"), False), (32, 0.5, True), (64, 0.75, True), (20, 0.5, True)],
)  # fmt: skip
def test_phi_rotates_whole_pairs_of_channels(head_dim: int, share: float, is_right: bool) -> None:
    family = FAMILY_OF["phi3"]
    config = tiny_config(family)
    config.head_dim = head_dim
    config.rope_parameters = {"rope_type": "default", "partial_rotary_factor": share}
    if is_right:
        assert front_family(config) is family
    else:
        with pytest.raises(ModelError, match=rf"of {head_dim} channels of a head.*in pairs"):
            front_family(config)


def test_a_model_that_looks_ahead_is_refused() -> None:
    config = tiny_config(FAMILIES[0])
    config.is_causal = False
    with pytest.raises(ModelError, match="looks ahead"):
        front_family(config)

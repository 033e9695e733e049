"""What is tested of models beside the families: kinds of positions and shapes, as tiny configs.

`docs/reference/models.md` lists these cases (`tests.docs.test_models_page`), and
`tests.end_to_end.test_every_model` runs them.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Case(NamedTuple):
    """A tiny model: a family with some of its config's values changed."""

    family: str
    changes: dict[str, Any]
    what: str


def rope(kind: str, **values: Any) -> dict[str, Any]:
    """A config's changes for one kind of position scaling."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **values}}


_LONG = {"short_factor": [1.0, 1.5] * 4, "long_factor": [3.0, 5.0] * 4}
_SHORT = {"max_position_embeddings": 256}

POSITIONS: dict[str, Case] = {
    "default": Case("llama", rope("default"), "plain rotary positions"),
    "linear": Case("llama", rope("linear", factor=4.0), "linear scaling"),
    "dynamic": Case(
        "llama",
        {**rope("dynamic", factor=4.0), "max_position_embeddings": 64},
        "dynamic NTK, up to the length at which the frequencies would change",
    ),
    "yarn": Case(
        "qwen3",
        rope("yarn", factor=4.0, original_max_position_embeddings=64),
        "YaRN (Qwen, DeepSeek distills)",
    ),
    "llama3": Case(
        "llama",
        rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
        "Llama 3's scaling",
    ),
    "longrope": Case(
        "phi3",
        {
            **rope("longrope", **_LONG, original_max_position_embeddings=64),
            "original_max_position_embeddings": 64,
        },
        "LongRoPE (Phi), up to the original length",
    ),
    "partial": Case(
        "phi3",
        {"head_dim": 32, **rope("default", partial_rotary_factor=0.75)},
        "a share of a head's channels (Phi-4-mini, GLM)",
    ),
    "partial-odd": Case(
        "phi3",
        {"head_dim": 32, **rope("default", partial_rotary_factor=0.375)},
        "a share that the device's kernel does not rotate as it is",
    ),
    "proportional": Case("llama", rope("proportional", partial_rotary_factor=0.5), "proportional"),
    "per-layer": Case(
        "gemma3",
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            }
        },
        "another base in each type of layer (Gemma 3)",
    ),
    "none": Case("smollm3", {"no_rope_layers": [1, 0, 0, 1]}, "layers without positions (SmolLM3)"),
    "pairs": Case("ernie4_5", {"head_dim": 32}, "neighbouring channels in pairs (GLM, Ernie)"),
}

SHAPES: dict[str, Case] = {
    "heads-of-8": Case("llama", {"head_dim": 8}, "heads of 8 channels (padded to 16)"),
    "heads-of-20": Case("llama", {"head_dim": 20}, "heads of 20 channels (padded to 32)"),
    "heads-of-40": Case("qwen3", {"head_dim": 40}, "heads of 40 channels with norms"),
    "wide-norms": Case("olmo2", {"head_dim": 24}, "padded heads with norms over the full width"),
    "padded-pairs": Case(
        "glm4", {"head_dim": 24}, "padded heads, a share rotated in neighbouring pairs"
    ),
    "padded-share": Case(
        "phi",
        {"hidden_size": 96, **rope("default", partial_rotary_factor=0.5)},
        "padded heads of which a share is rotated",
    ),
    "mha": Case("llama", {"num_key_value_heads": 4}, "keys and values for each head"),
    "mqa": Case("llama", {"num_key_value_heads": 1}, "one head of keys and values"),
    "biases": Case("llama", {"attention_bias": True, "mlp_bias": True}, "biases of every matrix"),
    "untied": Case("llama", {"tie_word_embeddings": False}, "a head of its own"),
    "odd-vocabulary": Case("llama", {"vocab_size": 331}, "an odd vocabulary"),
    "odd-width": Case(
        "llama", {"hidden_size": 72, "head_dim": 16}, "a width that 32 does not divide"
    ),
    "windows": Case(
        "qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 7,
            "layer_types": [
                "full_attention",
                "sliding_attention",
                "sliding_attention",
                "full_attention",
            ],
        },
        "windows in any pattern of layers",
    ),
    "wide-scale": Case(
        "gemma", {"hidden_size": 96}, "an embedding factor of a width that is no square"
    ),
    "caps": Case(
        "gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5}, "soft caps"
    ),
}

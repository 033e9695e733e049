"""Which model families Splitpoint splits, and what is said of those it does not."""

from __future__ import annotations

from typing import Any, Final

from optimizer.errors import ModelError

# Both halves are tested for these: the exporter's graph and transformers' layers agree.
SUPPORTED: Final[tuple[str, ...]] = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Gemma2ForCausalLM",
    "Phi3ForCausalLM",
)

# Other kinds of position scaling fail in the exporter, or (linear) come out wrong without a word.
SUPPORTED_ROTARY: Final[tuple[str, ...]] = ("default", "llama3")

# ONNX Runtime's GroupQueryAttention refuses others.
HEAD_DIM_STEP: Final = 16


def check_supported(config: Any) -> None:
    """Raise ModelError, naming what is supported, for a config of anything else.

    config: a transformers config; its architecture and its rotary embedding are looked at.
    """
    architecture = (config.architectures or [""])[0]
    if architecture not in SUPPORTED:
        families = ", ".join(name.removesuffix("ForCausalLM") for name in SUPPORTED)
        raise ModelError(
            f"architecture {architecture or 'unknown'} is not supported; supported: {families}"
        )
    rotary = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotary not in SUPPORTED_ROTARY:
        raise ModelError(
            f"{architecture} with {rotary} position scaling is not supported; "
            f"supported: {', '.join(SUPPORTED_ROTARY)}"
        )
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head_dim % HEAD_DIM_STEP:
        raise ModelError(
            f"attention heads of {head_dim} channels are not supported: the device's kernels need "
            f"a multiple of {HEAD_DIM_STEP}"
        )

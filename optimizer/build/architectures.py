"""Which model families Splitpoint splits, and what is said of those it does not."""

from __future__ import annotations

from typing import Final

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


def check_supported(architecture: str) -> None:
    """Raise ModelError naming the supported families unless `architecture` is one of them."""
    if architecture not in SUPPORTED:
        families = ", ".join(name.removesuffix("ForCausalLM") for name in SUPPORTED)
        raise ModelError(
            f"architecture {architecture or 'unknown'} is not supported; supported: {families}"
        )

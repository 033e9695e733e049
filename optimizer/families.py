"""The model families that Splitpoint splits: one table for the device's half and the server's.

A new family is an entry in `FAMILIES` and a tiny model in `tests/tiny_models.py`; the tests then
compare both halves with transformers' whole model. This module imports neither torch nor
transformers: configs are read by their attributes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from optimizer.errors import ModelError

# The exporter fails on other kinds of position scaling, or (linear) exports wrong positions.
SUPPORTED_ROTARY: Final[tuple[str, ...]] = ("default", "llama3")

# ONNX Runtime's GroupQueryAttention refuses other head sizes.
HEAD_DIM_STEP: Final = 16
# It rotates a multiple of 8 pairs of channels.
ROTATED_STEP: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFamily:
    """One family of decoder-only models and what is special about it.

    architecture: transformers' class, as `config.json` names it. model_type: its config's type.

    on_front: whether the exporter makes a front of it for the device. on_back: whether the server
    runs its layers. Both halves are tested against transformers' whole model.

    scales_embedding: the embedding's rows are multiplied by sqrt(D). always_attention_bias:
    queries, keys and values have a bias that the config does not mention.

    The rest of a layer is Llama's but for: sliding_windows (layers may see the last tokens only),
    soft_caps (scores and logits go through a tanh), extra_norms (of queries and keys, or of what
    attention and MLP return), offset_norms (a norm multiplies by 1 + weight), fused_projections
    (queries, keys and values are one matrix, gate and up another), partial_rotary (positions may
    rotate only the first channels of a head). A config of another family may name such a share
    too. transformers then takes no notice, and the exporter does.
    """

    architecture: str
    model_type: str
    on_front: bool = True
    on_back: bool = True
    scales_embedding: bool = False
    always_attention_bias: bool = False
    sliding_windows: bool = False
    soft_caps: bool = False
    extra_norms: bool = False
    offset_norms: bool = False
    fused_projections: bool = False
    partial_rotary: bool = False

    @property
    def name(self) -> str:
        """The family's short name, such as "gemma3"."""
        return self.model_type.removesuffix("_text")


FAMILIES: Final[tuple[ModelFamily, ...]] = (
    ModelFamily(architecture="LlamaForCausalLM", model_type="llama"),
    ModelFamily(architecture="MistralForCausalLM", model_type="mistral", sliding_windows=True),
    ModelFamily(
        architecture="Qwen2ForCausalLM",
        model_type="qwen2",
        always_attention_bias=True,
        sliding_windows=True,
    ),
    ModelFamily(
        architecture="Qwen3ForCausalLM",
        model_type="qwen3",
        sliding_windows=True,
        extra_norms=True,
    ),
    ModelFamily(
        architecture="Gemma2ForCausalLM",
        model_type="gemma2",
        scales_embedding=True,
        sliding_windows=True,
        soft_caps=True,
        extra_norms=True,
        offset_norms=True,
    ),
    ModelFamily(
        architecture="Gemma3ForCausalLM",
        model_type="gemma3_text",
        on_front=False,  # onnxruntime-genai's exporter cannot read its config
        scales_embedding=True,
        sliding_windows=True,
        extra_norms=True,
        offset_norms=True,
    ),
    ModelFamily(
        architecture="Phi3ForCausalLM",
        model_type="phi3",
        sliding_windows=True,
        fused_projections=True,
        partial_rotary=True,
    ),
)


def family_of(config: Any) -> ModelFamily | None:
    """The family of a transformers config, by its model type; None where there is none."""
    return next((known for known in FAMILIES if known.model_type == config.model_type), None)


def back_family(config: Any) -> ModelFamily:
    """The family of a transformers config whose back the server can run.

    Raises ModelError, naming what is supported, for any other.
    """
    family = family_of(config)
    if family is None or not family.on_back:
        types = ", ".join(known.model_type for known in FAMILIES if known.on_back)
        raise ModelError(
            f"models of type {config.model_type!r} are not supported; these are: {types}"
        )
    return family


def front_family(config: Any) -> ModelFamily:
    """The family of a transformers config of which a front can be exported.

    Looks at the architecture, the position scaling and the size of a head. Raises ModelError,
    naming what is supported, for any other.
    """
    architecture = (config.architectures or [""])[0]
    family = next((known for known in FAMILIES if known.architecture == architecture), None)
    if family is None or not family.on_front:
        names = ", ".join(
            known.architecture.removesuffix("ForCausalLM") for known in FAMILIES if known.on_front
        )
        raise ModelError(
            f"architecture {architecture or 'unknown'} is not supported; supported: {names}"
        )
    if getattr(config, "is_causal", True) is False or getattr(
        config, "use_bidirectional_attention", False
    ):
        raise ModelError(f"{architecture} that looks ahead (not causal) is not supported")
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
    _check_rotated_channels(config, family, head_dim)
    return family


def _check_rotated_channels(config: Any, family: ModelFamily, head_dim: int) -> None:
    """ModelError for a share of rotated channels that front and back do not both compute."""
    rope = getattr(config, "rope_parameters", None) or {}
    for share in (
        rope.get("partial_rotary_factor"),
        getattr(config, "partial_rotary_factor", None),
    ):
        if share is None or share == 1:
            continue
        if not family.partial_rotary:
            raise ModelError(
                f"{family.architecture} with partial_rotary_factor {share} is not supported: "
                "positions must rotate whole heads in this family"
            )
        rotated = int(head_dim * share) if 0 < share <= 1 else 0
        if not rotated or rotated % ROTATED_STEP:
            raise ModelError(
                f"{family.architecture} with partial_rotary_factor {share} rotates {rotated} of "
                f"{head_dim} channels of a head, which is not supported: the device's kernels need "
                f"a multiple of {ROTATED_STEP}"
            )

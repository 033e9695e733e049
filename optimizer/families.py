"""The model families that Splitpoint splits: one table for the device's half and the server's.

A new family is an entry in `FAMILIES` and a tiny model in `tests/tiny_models.py`; the tests then
compare both halves with transformers' whole model. This module imports neither torch nor
transformers: configs are read by their attributes.

Long because the table is one, and each family takes a few lines of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from optimizer.errors import ModelError

# Kinds of position scaling. transformers computes the tables of all of them; a kind that is not
# here may change its frequencies in a way that `position_limit` does not know.
SUPPORTED_ROTARY: Final[tuple[str, ...]] = (
    "default",
    "linear",
    "dynamic",
    "yarn",
    "longrope",
    "llama3",
    "proportional",
)
# These kinds change their frequencies with the longest sequence of a batch. Up to the length that
# the model was first trained for, the frequencies are constant.
LENGTH_DEPENDENT: Final = ("dynamic", "longrope")
# Models with a recurrent state, by model type. A session's state is keys and values only.
RECURRENT: Final[tuple[str, ...]] = (
    "bamba",
    "falcon_h1",
    "falcon_mamba",
    "jamba",
    "kimi_linear",
    "lfm2",
    "lfm2_moe",
    "mamba",
    "mamba2",
    "minimax",
    "nemotron_h",
    "olmo_hybrid",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_next",
    "recurrent_gemma",
    "rwkv",
    "xlstm",
    "zamba",
    "zamba2",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNorms:
    """Names of a layer's norms of the residual stream; None where there is none.

    before_*: of what goes into attention or MLP. after_*: of what they return. parallel: attention
    and MLP read the same normed row, and the sum of both is added.
    """

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None
    parallel: bool = False


PRE_NORM: Final = LayerNorms()
SANDWICH: Final = LayerNorms(
    after_attention="post_attention_layernorm",
    before_mlp="pre_feedforward_layernorm",
    after_mlp="post_feedforward_layernorm",
)
GLM_SANDWICH: Final = LayerNorms(
    after_attention="post_self_attn_layernorm", after_mlp="post_mlp_layernorm"
)
POST_NORM: Final = LayerNorms(
    before_attention=None,
    after_attention="post_attention_layernorm",
    before_mlp=None,
    after_mlp="post_feedforward_layernorm",
)
PARALLEL: Final = LayerNorms(before_mlp=None, parallel=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertTraits:
    """How a family's layers choose among experts, and how a checkpoint holds these.

    router: the module that scores experts. count: the config's field with their number.
    interleaved: outputs of gate and up alternate, else the gate's come first. transposed: matrices
    are inputs by outputs. always_normalized: the chosen experts' weights sum to 1 whatever the
    config says. offset: added to the up projection. alpha, limit: fields of the config with the
    gate's slope and the bound of both projections; empty: 1, and none.
    """

    router: str
    count: str
    interleaved: bool = False
    transposed: bool = False
    always_normalized: bool = False
    offset: float = 0.0
    alpha: str = ""
    limit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFamily:
    """One family of decoder-only models and what its layers are made of.

    architecture: transformers' class, as `config.json` names it. model_type: its config's type.

    on_front: whether a front of it can be written for the device. on_back: whether the server runs
    its layers. Both halves are tested against transformers' whole model.

    norms: which there are in a layer. norm_kind: "rms", or "layer" for LayerNorm. offset_norms: a
    norm multiplies by 1 + weight. query_key_norms: of each head's queries and keys, or of all heads
    together ("width"). final_norm: the last norm's name.

    attention: names of the matrices, three or one joined before the output's. mlp: names of the
    matrices, and mlp_module of what holds them; gated: the first two are gate and up (or one
    joined), else one matrix goes up. inner_size: the config's field with the MLP's width.

    rotary_pairs: a rotation mixes channels (2 i, 2 i + 1), else (i, i + half). partial_rotary:
    positions may rotate only the first channels of a head. A config of another family may name such
    a share too; transformers then takes no notice in some kinds of scaling and fails in others.

    scales_embedding: the embedding's rows are multiplied by sqrt(D). multipliers: the config has
    factors of embedding, attention, residual updates and logits (Granite). sliding_windows: layers
    may see the last tokens only. soft_caps: attention's scores go through a tanh.
    final_soft_cap: logits do. always_attention_bias: queries, keys and values have a bias that the
    config does not mention. sinks: each head has a score that belongs to no token (gpt-oss).
    experts: layers may have several MLPs, of which a router chooses some for each token.
    """

    architecture: str
    model_type: str
    on_front: bool = True
    on_back: bool = True
    norms: LayerNorms = PRE_NORM
    norm_kind: Literal["rms", "layer"] = "rms"
    offset_norms: bool = False
    query_key_norms: Literal["head", "width"] | None = None
    final_norm: str = "norm"
    attention: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    mlp: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    mlp_module: str = "mlp"
    inner_size: str = "intermediate_size"
    gated: bool = True
    rotary_pairs: bool = False
    partial_rotary: bool = False
    scales_embedding: bool = False
    multipliers: bool = False
    sliding_windows: bool = False
    soft_caps: bool = False
    final_soft_cap: bool = False
    always_attention_bias: bool = False
    sinks: bool = False
    experts: ExpertTraits | None = None

    @property
    def name(self) -> str:
        """The family's short name, such as "gemma3"."""
        return self.model_type.removesuffix("_text")

    @property
    def fused_projections(self) -> bool:
        """Whether queries, keys and values are one matrix."""
        return len(self.attention) == 2

    def embedding_factor(self, config: Any) -> float | None:
        """What the embedding's rows are multiplied by; None: nothing."""
        if self.scales_embedding:
            return float(config.hidden_size**0.5)
        factor = float(getattr(config, "embedding_multiplier", 1.0)) if self.multipliers else 1.0
        return None if factor == 1.0 else factor

    def residual_factor(self, config: Any) -> float:
        """What attention's and MLP's results are multiplied by before they are added."""
        return float(getattr(config, "residual_multiplier", 1.0)) if self.multipliers else 1.0

    def logits_divisor(self, config: Any) -> float | None:
        """What logits are divided by; None: nothing."""
        divisor = float(getattr(config, "logits_scaling", 1.0)) if self.multipliers else 1.0
        return None if divisor == 1.0 else divisor

    def logits_cap(self, config: Any) -> float | None:
        """The cap of logits, cap * tanh(logits / cap); None: they stay as they are."""
        cap = getattr(config, "final_logit_softcapping", None) if self.final_soft_cap else None
        return None if cap is None else float(cap)

    def score_cap(self, config: Any) -> float | None:
        """The same of attention's scores."""
        cap = getattr(config, "attn_logit_softcapping", None) if self.soft_caps else None
        return None if cap is None else float(cap)


FAMILIES: Final[tuple[ModelFamily, ...]] = (
    ModelFamily(architecture="LlamaForCausalLM", model_type="llama"),
    ModelFamily(architecture="MistralForCausalLM", model_type="mistral", sliding_windows=True),
    ModelFamily(architecture="MinistralForCausalLM", model_type="ministral", sliding_windows=True),
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
        query_key_norms="head",
    ),
    ModelFamily(
        architecture="Qwen3MoeForCausalLM",
        model_type="qwen3_moe",
        sliding_windows=True,
        query_key_norms="head",
        experts=ExpertTraits(router="gate", count="num_experts"),
    ),
    ModelFamily(
        architecture="GptOssForCausalLM",
        model_type="gpt_oss",
        sliding_windows=True,
        always_attention_bias=True,
        sinks=True,
        experts=ExpertTraits(
            router="router",
            count="num_local_experts",
            interleaved=True,
            transposed=True,
            always_normalized=True,
            offset=1.0,
            alpha="swiglu_alpha",
            limit="swiglu_limit",
        ),
    ),
    ModelFamily(
        architecture="GemmaForCausalLM",
        model_type="gemma",
        scales_embedding=True,
        offset_norms=True,
    ),
    ModelFamily(
        architecture="Gemma2ForCausalLM",
        model_type="gemma2",
        norms=SANDWICH,
        offset_norms=True,
        scales_embedding=True,
        sliding_windows=True,
        soft_caps=True,
        final_soft_cap=True,
    ),
    ModelFamily(
        architecture="Gemma3ForCausalLM",
        model_type="gemma3_text",
        norms=SANDWICH,
        offset_norms=True,
        query_key_norms="head",
        scales_embedding=True,
        sliding_windows=True,
        final_soft_cap=True,
    ),
    ModelFamily(
        architecture="Phi3ForCausalLM",
        model_type="phi3",
        attention=("qkv_proj", "o_proj"),
        mlp=("gate_up_proj", "down_proj"),
        sliding_windows=True,
        partial_rotary=True,
    ),
    ModelFamily(architecture="SmolLM3ForCausalLM", model_type="smollm3", sliding_windows=True),
    ModelFamily(architecture="GraniteForCausalLM", model_type="granite", multipliers=True),
    ModelFamily(
        architecture="GraniteMoeHybridForCausalLM",
        model_type="granitemoehybrid",
        multipliers=True,
        mlp=("input_linear", "output_linear"),
        mlp_module="shared_mlp",
        inner_size="shared_intermediate_size",
    ),
    ModelFamily(
        architecture="Olmo2ForCausalLM",
        model_type="olmo2",
        norms=POST_NORM,
        query_key_norms="width",
    ),
    ModelFamily(
        architecture="Olmo3ForCausalLM",
        model_type="olmo3",
        norms=POST_NORM,
        query_key_norms="width",
        sliding_windows=True,
    ),
    ModelFamily(
        architecture="Exaone4ForCausalLM",
        model_type="exaone4",
        norms=POST_NORM,
        query_key_norms="head",
        sliding_windows=True,
    ),
    ModelFamily(architecture="Ernie4_5ForCausalLM", model_type="ernie4_5", rotary_pairs=True),
    ModelFamily(
        architecture="GlmForCausalLM",
        model_type="glm",
        mlp=("gate_up_proj", "down_proj"),
        rotary_pairs=True,
        partial_rotary=True,
    ),
    ModelFamily(
        architecture="Glm4ForCausalLM",
        model_type="glm4",
        norms=GLM_SANDWICH,
        mlp=("gate_up_proj", "down_proj"),
        rotary_pairs=True,
        partial_rotary=True,
    ),
    ModelFamily(
        architecture="Starcoder2ForCausalLM",
        model_type="starcoder2",
        norm_kind="layer",
        mlp=("c_fc", "c_proj"),
        gated=False,
        sliding_windows=True,
    ),
    ModelFamily(
        architecture="ArceeForCausalLM",
        model_type="arcee",
        mlp=("up_proj", "down_proj"),
        gated=False,
    ),
    ModelFamily(architecture="SeedOssForCausalLM", model_type="seed_oss"),
    ModelFamily(
        architecture="PhiForCausalLM",
        model_type="phi",
        norms=PARALLEL,
        norm_kind="layer",
        final_norm="final_layernorm",
        attention=("q_proj", "k_proj", "v_proj", "dense"),
        mlp=("fc1", "fc2"),
        gated=False,
        partial_rotary=True,
        always_attention_bias=True,
    ),
    ModelFamily(
        architecture="NemotronForCausalLM",
        model_type="nemotron",
        norm_kind="layer",
        offset_norms=True,
        mlp=("up_proj", "down_proj"),
        gated=False,
        partial_rotary=True,
    ),
    ModelFamily(architecture="OlmoForCausalLM", model_type="olmo", norm_kind="layer"),
)


def family_of(config: Any) -> ModelFamily | None:
    """The family of a transformers config, by its model type; None where there is none."""
    return next((known for known in FAMILIES if known.model_type == config.model_type), None)


def back_family(config: Any) -> ModelFamily:
    """The family of a transformers config whose back the server can run.

    Raises ModelError, naming what is supported, for any other.
    """
    family = family_of(config)
    _check_is_dense_granite(config)
    if family is None or not family.on_back:
        types = ", ".join(known.model_type for known in FAMILIES if known.on_back)
        raise ModelError(
            f"models of type {config.model_type!r} are not supported{_why_not(config)}; "
            f"these are: {types}"
        )
    return family


def front_family(config: Any) -> ModelFamily:
    """The family of a transformers config of which a front can be written.

    Looks at the architecture, the position scaling and the size of a head. Raises ModelError,
    naming what is supported, for any other.
    """
    _check_is_dense_granite(config)
    architecture = (config.architectures or [""])[0]
    family = next((known for known in FAMILIES if known.architecture == architecture), None)
    if family is None or not family.on_front:
        names = ", ".join(
            known.architecture.removesuffix("ForCausalLM") for known in FAMILIES if known.on_front
        )
        raise ModelError(
            f"architecture {architecture or 'unknown'} is not supported{_why_not(config)}; "
            f"supported: {names}"
        )
    if family.model_type != config.model_type:
        raise ModelError(
            f"architecture {architecture} with model_type {config.model_type!r} is not supported: "
            f"transformers computes it as another model; {architecture} has {family.model_type!r}"
        )
    if getattr(config, "is_causal", True) is False or getattr(
        config, "use_bidirectional_attention", False
    ):
        raise ModelError(f"{architecture} that looks ahead (not causal) is not supported")
    for rope in rope_parameters(config):
        rotary = rope.get("rope_type", "default")
        if rotary not in SUPPORTED_ROTARY:
            raise ModelError(
                f"{architecture} with {rotary} position scaling is not supported; "
                f"supported: {', '.join(SUPPORTED_ROTARY)}"
            )
    if getattr(config, "qk_layernorm", False):
        raise ModelError(f"{architecture} with qk_layernorm is not supported")
    _check_rotated_channels(config, family)
    return family


def rope_parameters(config: Any) -> list[dict[str, Any]]:
    """The position parameters of a config: one set, or one of each type of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return nested or [parameters]


def position_limit(config: Any) -> int:
    """The most positions up to which every rotary frequency is constant.

    Beyond it a session's results would depend on who shares its batch.
    """
    longest = int(config.max_position_embeddings)
    for rope in rope_parameters(config):
        if rope.get("rope_type") in LENGTH_DEPENDENT:
            original = rope.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            longest = min(longest, int(original or longest))
    return longest


def head_dim_of(config: Any) -> int:
    """Channels of an attention head."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def _check_is_dense_granite(config: Any) -> None:
    """ModelError for a Granite 4 that is more than a decoder with one MLP a layer."""
    if config.model_type != "granitemoehybrid":
        return
    if any(kind == "linear_attention" for kind in config.layers_block_type):
        reason = "its layers keep a recurrent state, which sessions do not have"
    elif config.num_local_experts:
        reason = "it has experts beside a shared MLP"
    elif config.position_embedding_type != "rope":
        reason = "it has no rotary positions"
    else:
        return
    raise ModelError(f"this Granite 4 is not supported ({reason}); its dense models are")


def _why_not(config: Any) -> str:
    """A reason, where one is known, why no family takes the config."""
    if config.model_type in RECURRENT:
        return " (its layers keep a recurrent state, which sessions do not have)"
    return ""


def _check_rotated_channels(config: Any, family: ModelFamily) -> None:
    """ModelError for a share of rotated channels that front and back do not both compute."""
    head_dim = head_dim_of(config)
    shares = [rope.get("partial_rotary_factor") for rope in rope_parameters(config)]
    for rope, share in zip(
        [*rope_parameters(config), {}],
        [*shares, getattr(config, "partial_rotary_factor", None)],
        strict=True,
    ):
        # This kind names the share of channels whose frequency is not zero; all are rotated.
        if share is None or share == 1 or rope.get("rope_type") == "proportional":
            continue
        if not family.partial_rotary:
            raise ModelError(
                f"{family.architecture} with partial_rotary_factor {share} is not supported: "
                "positions must rotate whole heads in this family"
            )
        rotated = int(head_dim * share) if 0 < share <= 1 else 0
        if not rotated or rotated % 2:
            raise ModelError(
                f"{family.architecture} with partial_rotary_factor {share} rotates {rotated} of "
                f"{head_dim} channels of a head, which is not supported: they are rotated in pairs"
            )

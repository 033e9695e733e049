"""What one model's layers are made of: the family's table, and numbers from transformers' modules.

A number that transformers computes when it makes a model (the factor on scores, an epsilon) is read
from the modules of a model without weights, so that it is not computed here a second time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from optimizer.artifacts.geometry import ModelGeometry
from optimizer.errors import ModelError
from optimizer.export.front.head_layout import HeadLayout
from optimizer.export.front.rotary_tables import RotaryModule
from optimizer.families import ModelFamily, front_family

# By the class of an activation in transformers.
ACTIVATIONS: Final[dict[str, str]] = {
    "SiLUActivation": "silu",
    "SiLU": "silu",
    "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh",
    "GELUActivation": "gelu",
    "ReLUSquaredActivation": "relu2",
    "ReLU": "relu",
}
BARE_NORM_EPS: Final = 1e-5  # OLMo's LayerNorm has no attribute of that name


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerForm:
    """One layer: `scale`, `window` and `rotary` (the kind of table, None: no rotation) may differ
    from layer to layer."""

    index: int
    scale: float
    window: int | None
    rotary: str | None
    has_experts: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertForm:
    """A model's experts: how many there are and how many a token gets.

    normalized: their weights sum to 1. A gated unit is gate * sigmoid(alpha * gate) *
    (up + offset), with both projections within `limit`.
    """

    count: int
    chosen: int
    normalized: bool
    alpha: float
    offset: float
    limit: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderForm:
    """All layers of a model, as the writer needs them.

    prefix: of the decoder's tensors. norm_eps: of the residual stream's norms. query_eps: of
    those of queries and keys.
    """

    family: ModelFamily
    prefix: str
    hidden_size: int
    vocab_size: int
    num_heads: int
    num_kv_heads: int
    layout: HeadLayout
    activation: str
    norm_eps: float
    query_eps: float
    score_cap: float
    clip: float | None
    embedding_factor: float | None
    residual_factor: float
    logits_divisor: float | None
    logits_cap: float | None
    rotary: RotaryModule
    experts: ExpertForm | None
    layers: tuple[LayerForm, ...]


def decoder_form(config: Any, geometry: ModelGeometry, skeleton: Any) -> DecoderForm:
    """The form of a model. skeleton: transformers' model of the config, without weights.

    Raises ModelError for what the family's layers have and the writer does not know.
    """
    family = front_family(config)
    decoder = skeleton.get_decoder()
    prefix = next(name for name, module in skeleton.named_modules() if module is decoder)
    first: Any = decoder.layers[0]
    rotary = RotaryModule(decoder, config)
    layout = HeadLayout(
        head_dim=geometry.head_dim, rotated=2 * rotary.num_pairs, pairs=family.rotary_pairs
    )
    if layout.rotated > layout.head_dim:
        raise ModelError(f"{family.architecture}: rotates more channels than a head has")
    return DecoderForm(
        family=family,
        prefix=prefix,
        hidden_size=geometry.hidden_size,
        vocab_size=geometry.vocab_size,
        num_heads=geometry.num_heads,
        num_kv_heads=geometry.num_kv_heads,
        layout=layout,
        activation=_activation(_dense_mlp(decoder.layers, family), family),
        norm_eps=_eps(getattr(decoder, family.final_norm)),
        query_eps=_eps(first.self_attn.q_norm) if family.query_key_norms else 0.0,
        score_cap=family.score_cap(config) or 0.0,
        clip=getattr(config, "clip_qkv", None),
        embedding_factor=family.embedding_factor(config),
        residual_factor=family.residual_factor(config),
        logits_divisor=family.logits_divisor(config),
        logits_cap=family.logits_cap(config),
        rotary=rotary,
        experts=_expert_form(config, family, decoder.layers),
        layers=tuple(
            _layer_form(index, layer, geometry, rotary)
            for index, layer in enumerate(decoder.layers)
        ),
    )


def _layer_form(index: int, layer: Any, geometry: ModelGeometry, rotary: RotaryModule) -> LayerForm:
    attention = layer.self_attn
    window = geometry.window_of_layer(index)
    if getattr(attention, "sliding_window", window) != window and _slides(attention):
        raise ModelError(
            f"layer {index}: the config gives it a window of {attention.sliding_window} tokens, "
            f"its geometry {window or 'none'}"
        )
    return LayerForm(
        index=index,
        scale=float(attention.scaling),
        window=window,
        rotary=rotary.kind_of(index) if _rotates(attention) else None,
        has_experts=hasattr(getattr(layer, "mlp", None), "experts"),
    )


def _dense_mlp(layers: Any, family: ModelFamily) -> Any:
    """The MLP of the first layer that has one, else the experts of the first layer."""
    found = [getattr(layer, family.mlp_module) for layer in layers]
    dense = (mlp for mlp in found if not hasattr(mlp, "experts"))
    return next(dense, None) or found[0].experts


def _expert_form(config: Any, family: ModelFamily, layers: Any) -> ExpertForm | None:
    traits = family.experts
    if traits is None:
        return None
    found = (layer.mlp.experts for layer in layers if hasattr(layer.mlp, "experts"))
    experts = next(found, None)
    if experts is not None and hasattr(experts, "act_fn"):
        kind = ACTIVATIONS.get(type(experts.act_fn).__name__)
        if kind != "silu":
            raise ModelError(f"{family.architecture} with experts of {kind} is not supported")
    return ExpertForm(
        count=int(getattr(config, traits.count)),
        chosen=int(config.num_experts_per_tok),
        normalized=traits.always_normalized or bool(getattr(config, "norm_topk_prob", False)),
        alpha=float(getattr(config, traits.alpha)) if traits.alpha else 1.0,
        offset=traits.offset,
        limit=float(getattr(config, traits.limit)) if traits.limit else None,
    )


def _slides(attention: Any) -> bool:
    """Whether the module's window counts: EXAONE's layers have the number in any case."""
    return bool(getattr(attention, "is_sliding", True))


def _rotates(attention: Any) -> bool:
    """Whether positions rotate the layer's heads: SmolLM3 and EXAONE leave some out."""
    if hasattr(attention, "use_rope"):
        return bool(attention.use_rope)
    if hasattr(attention, "sliding_window_pattern"):
        return attention.sliding_window is None or bool(attention.is_sliding)
    return True


def _activation(mlp: nn.Module, family: ModelFamily) -> str:
    if family.experts is not None and family.experts.alpha:
        return "silu"  # written into the experts' module
    module = next(
        (
            part
            for name, part in mlp.named_children()
            if name in ("act_fn", "activation_fn", "act", "activation")
        ),
        None,
    )
    kind = ACTIVATIONS.get(type(module).__name__)
    if kind is None:
        raise ModelError(
            f"{family.architecture} with the activation {type(module).__name__} is not supported"
        )
    return kind


def _eps(norm: Any) -> float:
    for name in ("variance_epsilon", "eps"):
        if hasattr(norm, name):
            return float(getattr(norm, name))
    return BARE_NORM_EPS

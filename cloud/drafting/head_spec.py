"""What a published draft head looks like: its form, its sizes and its tensors, read and checked.

Two forms are read here as their authors publish them, as safetensors beside a `config.json`:

- EAGLE (Li et al. 2024, arXiv:2401.15077): `fc` joins the embedding of a token with the model's
  normed final state of the position before it; one decoder layer; the model's own head.
- EAGLE-3 (Li et al. 2025, arXiv:2503.01840): `fc` joins the states at several layers; the decoder
  layer reads it beside the embedding, each normed; a head of its own over fewer tokens, of which
  `d2t` gives the ids as offsets.

Layers of the model's own for several tokens are read by `cloud.drafting.mtp_spec`.

Whatever is in a file is hostile until it has passed here. A tensor that no form has is refused: it
would mean a head of another kind.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from cloud.drafting.mtp_spec import MtpWeights, has_mtp, read_mtp
from cloud.engine.tensor_files import TensorFiles
from cloud.errors import WeightsError

CONFIG_NAME: Final = "config.json"
_EAGLE: Final = "eagle"
_EAGLE3: Final = "eagle3"
# Where files say the same in several ways.
_PREFIXES: Final = ("model.", "eagle_layer.")
_LAYER_PREFIXES: Final = ("layers.0.", "midlayer.")
_AUX_NAMES: Final = ("eagle_aux_hidden_state_layer_ids", "aux_hidden_state_layer_ids")
_IGNORED: Final = frozenset({"t2d", "rotary_emb.inv_freq", "self_attn.rotary_emb.inv_freq"})
_MAX_LAYERS_READ: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSpec:
    """A head's form and sizes.

    form: "eagle" or "eagle3". layers: at which of the model's layers its states are taken; L: what
    the last one gives. hidden_size: of the model and of the head. vocab_size: tokens that it knows.
    """

    form: str
    layers: tuple[int, ...]
    hidden_size: int
    inner: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    eps: float
    config: Any

    @property
    def is_eagle3(self) -> bool:
        """Whether the layer reads embedding and state side by side."""
        return self.form == _EAGLE3

    @property
    def input_width(self) -> int:
        """Channels that queries, keys and values are made of."""
        return self.hidden_size * (2 if self.is_eagle3 else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadWeights:
    """A head's tensors by their plain names, float32. token_ids: int64 [V'] what its logits stand
    for; None: the model's own ids. embedding: [V, D]; None: the model's own."""

    spec: HeadSpec
    tensors: Mapping[str, Tensor]
    token_ids: Tensor | None
    embedding: Tensor | None


def read_head(
    folder: Path, *, hidden_size: int, vocab_size: int, num_layers: int
) -> HeadWeights | MtpWeights:
    """The head in `folder` for a model of these sizes. Raises WeightsError, in one line."""
    config = _read_config(folder)
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        pickled = any(folder.glob("*.bin"))
        cure = ": a .bin file may hold code; save it as safetensors" if pickled else ""
        raise WeightsError(f"{folder}: no safetensors file of a draft head{cure}")
    files = TensorFiles(folder, paths, torch.device("cpu"))
    if has_mtp(files):
        return read_mtp(
            folder,
            config,
            files,
            hidden_size=hidden_size,
            vocab_size=vocab_size,
            num_layers=num_layers,
        )
    names: dict[str, str] = {}
    for name in files:
        if (other := names.setdefault(_plain(name), name)) != name:
            raise WeightsError(f"{folder}: {other} and {name} are the same tensor of a head")
    form = _form(folder, names)
    spec = _spec(folder, form, config, names, files, hidden_size, num_layers)
    tensors: dict[str, Tensor] = {}
    for name, shape in _shapes(spec, names).items():
        tensors[name] = _finite(folder, name, files.need(names.get(name, name), shape))
    token_ids = _token_ids(folder, spec, names, files, vocab_size)
    embedding = None
    if "embed_tokens.weight" in names:
        embedding = files.need(names["embed_tokens.weight"], (vocab_size, hidden_size))
    known = {*tensors, "embed_tokens.weight", "d2t", *_IGNORED}
    strange = sorted(name for name in names if name not in known)
    if strange:
        raise WeightsError(f"{folder}: {strange[0]}: no tensor of an EAGLE or EAGLE-3 head")
    return HeadWeights(spec=spec, tensors=tensors, token_ids=token_ids, embedding=embedding)


def _plain(name: str) -> str:
    """A tensor's name without what different files put before it."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    for prefix in _LAYER_PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not readable ({error})") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: not a JSON object")
    nested = values.get("transformer_layer_config")
    return {**values, **nested} if isinstance(nested, dict) else values


def _form(folder: Path, names: Mapping[str, str]) -> str:
    if "fc.weight" not in names:
        raise WeightsError(f"{folder}: no fc.weight, so no EAGLE, EAGLE-3 or multi-token head")
    return _EAGLE3 if "hidden_norm.weight" in names else _EAGLE


def _spec(
    folder: Path,
    form: str,
    config: dict[str, Any],
    names: Mapping[str, str],
    files: TensorFiles,
    hidden_size: int,
    num_layers: int,
) -> HeadSpec:
    """The sizes that the config claims; `_shapes` then holds every tensor to them."""

    def number(name: str, default: int | None = None, most: int = 1 << 20) -> int:
        value = config.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise WeightsError(f"{folder / CONFIG_NAME}: {name} is {value!r}")
        return value

    if (width := number("hidden_size")) != hidden_size:
        raise WeightsError(f"{folder}: a head of width {width}, the model's is {hidden_size}")
    heads = number("num_attention_heads")
    kv_heads = number("num_key_value_heads", heads)
    head_dim = number("head_dim", max(width // heads, 1))
    if heads % kv_heads or head_dim % 2:
        raise WeightsError(f"{folder}: {heads} heads of {head_dim} channels for {kv_heads} of keys")
    eps = config.get("rms_norm_eps", 1e-6)
    if not isinstance(eps, float | int) or not 0 < eps < 1:
        raise WeightsError(f"{folder / CONFIG_NAME}: rms_norm_eps is {eps!r}")
    layers = _layers(folder, form, config, num_layers)
    vocab_size = number("vocab_size")
    if form == _EAGLE3:
        vocab_size = number("draft_vocab_size", vocab_size)
    elif "lm_head.weight" in names and "d2t" in names:
        vocab_size = number("draft_vocab_size")
    return HeadSpec(
        form=form,
        layers=layers,
        hidden_size=width,
        inner=number("intermediate_size"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        eps=float(eps),
        config=_rotary_config(folder, config, heads=heads, head_dim=head_dim, width=width),
    )


def _layers(folder: Path, form: str, config: dict[str, Any], num_layers: int) -> tuple[int, ...]:
    """Where the states are taken: EAGLE reads the last one, EAGLE-3 names layers."""
    if form == _EAGLE:
        return (num_layers,)
    nested = config.get("eagle_config")
    for values in (nested if isinstance(nested, dict) else {}, config):
        for name in _AUX_NAMES:
            if name in values:
                return _checked_layers(folder, values[name], num_layers)
    return _checked_layers(folder, [2, num_layers // 2, num_layers - 3], num_layers)


def _checked_layers(folder: Path, values: Any, num_layers: int) -> tuple[int, ...]:
    is_list = isinstance(values, list) and 1 <= len(values) <= _MAX_LAYERS_READ
    if not is_list or not all(type(one) is int and 0 <= one <= num_layers for one in values):
        raise WeightsError(f"{folder}: reads states at layers {values}, the model has {num_layers}")
    return tuple(values)


def _rotary_config(
    folder: Path, config: dict[str, Any], *, heads: int, head_dim: int, width: int
) -> Any:
    """What transformers makes the rotary frequencies from. One layer, whatever the file says."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    names = ("rope_theta", "rope_scaling", "rope_parameters", "max_position_embeddings")
    given = {name: config[name] for name in names if config.get(name) is not None}
    try:
        made = LlamaConfig(
            hidden_size=width,
            num_attention_heads=heads,
            head_dim=head_dim,
            num_hidden_layers=1,
            **given,
        )
        LlamaRotaryEmbedding(made)  # what it cannot make frequencies of, it says now
    except Exception as error:  # transformers raises many kinds for what it cannot read
        raise WeightsError(f"{folder / CONFIG_NAME}: rotary settings ({error})") from error
    return made


def _shapes(spec: HeadSpec, names: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """The tensors that the head must have, and those that it has beside them, with their shapes."""
    width, wide = spec.hidden_size, spec.input_width
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    fc_in = 2 * width if spec.form == _EAGLE else len(spec.layers) * width
    needed: dict[str, tuple[int, ...]] = {
        "fc.weight": (width, fc_in),
        "self_attn.q_proj.weight": (queries, wide),
        "self_attn.k_proj.weight": (keys, wide),
        "self_attn.v_proj.weight": (keys, wide),
        "self_attn.o_proj.weight": (width, queries),
        "mlp.gate_proj.weight": (spec.inner, width),
        "mlp.up_proj.weight": (spec.inner, width),
        "mlp.down_proj.weight": (width, spec.inner),
        "post_attention_layernorm.weight": (width,),
    }
    optional: dict[str, tuple[int, ...]] = {
        "fc.bias": (width,),
        "self_attn.q_proj.bias": (queries,),
        "self_attn.k_proj.bias": (keys,),
        "self_attn.v_proj.bias": (keys,),
        "input_layernorm.weight": (width,),
        "norm.weight": (width,),
        "lm_head.weight": (spec.vocab_size, width),
    }
    if spec.is_eagle3:
        needed["hidden_norm.weight"] = (width,)
        for name in ("input_layernorm.weight", "norm.weight"):
            needed[name] = optional.pop(name)
    projections = [name for name in optional if name.startswith("self_attn.")]
    if any(name in names for name in projections):  # all three or none
        needed |= {name: optional.pop(name) for name in projections}
    return needed | {name: shape for name, shape in optional.items() if name in names}


def _token_ids(
    folder: Path,
    spec: HeadSpec,
    names: Mapping[str, str],
    files: TensorFiles,
    vocab_size: int,
) -> Tensor | None:
    """The model's ids of the head's logits; `d2t` holds what to add to each index."""
    if "d2t" not in names:
        if spec.vocab_size != vocab_size:
            raise WeightsError(
                f"{folder}: a head of {spec.vocab_size} tokens without d2t; the model has "
                f"{vocab_size}"
            )
        return None
    offsets = files.need(names["d2t"], (spec.vocab_size,))
    if offsets.is_floating_point():
        raise WeightsError(f"{folder}: d2t holds {offsets.dtype}, not whole numbers")
    token_ids = offsets.long() + torch.arange(spec.vocab_size)
    if int(token_ids.min()) < 0 or int(token_ids.max()) >= vocab_size:
        raise WeightsError(f"{folder}: d2t names tokens that the model has not")
    return token_ids


def _finite(folder: Path, name: str, tensor: Tensor) -> Tensor:
    tensor = tensor.float()
    if not bool(tensor.isfinite().all()):
        raise WeightsError(f"{folder}: {name} holds values that are not finite")
    return tensor

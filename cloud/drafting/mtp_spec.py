"""Multi-token-prediction layers as checkpoints have them: their forms, read and checked.

Such a checkpoint holds one decoder layer beyond the model's own, which reads the model's last state
beside the next token's embedding (DeepSeek-V3, arXiv:2412.19437, section 2.2). Two ways to store it
are read:

- DeepSeek-V3 and GLM-4.5: `model.layers.N.` with N behind the model's last layer: `enorm`, `hnorm`,
  `eh_proj`, the layer, `shared_head.norm`, perhaps `shared_head.head` and `embed_tokens`.
- Qwen3-Next: `mtp.`: `pre_fc_norm_embedding`, `pre_fc_norm_hidden`, `fc`, `layers.0.`, `norm`. Head
  and embedding are the model's.

The layer itself is the family's, as transformers computes it. A folder may hold the whole
checkpoint or these tensors alone. Of several such layers the first is used, again and again. What
is in a file is hostile until it has passed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from cloud.attention.transformers_interface import ATTENTION_NAME
from cloud.engine.tensor_files import TensorFiles
from cloud.errors import WeightsError

_JOIN: Final = re.compile(r"(?:model\.)?layers\.(\d+)\.eh_proj\.weight")
# What is made for these before any tensor is compared with them would take memory without end.
_MOST: Final = {
    "n_routed_experts": 4096,
    "num_experts": 4096,
    "head_dim": 4096,
    "qk_rope_head_dim": 4096,
}
_GATE_UP, _DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"


@dataclass(frozen=True, slots=True, kw_only=True)
class MtpForm:
    """How a family writes its layer. Names are behind the prefix of the checkpoint's tensors.

    module: of transformers. classes: what its classes' names begin with. follows_normed: whether a
    further guess reads the state behind the last norm.
    """

    module: str
    classes: str
    embedding_norm: str
    state_norm: str
    join: str
    layer: str
    out_norm: str
    follows_normed: bool

    def made(self, name: str) -> Any:
        """A class of transformers: the family's `name`."""
        return getattr(
            import_module(f"transformers.models.{self.module}.modeling_{self.module}"),
            self.classes + name,
        )


def _as_deepseek(module: str, classes: str) -> MtpForm:
    return MtpForm(
        module=module,
        classes=classes,
        embedding_norm="enorm",
        state_norm="hnorm",
        join="eh_proj",
        layer="",
        out_norm="shared_head.norm",
        follows_normed=False,
    )


# By model_type.
MTP_FORMS: Final[dict[str, MtpForm]] = {
    "deepseek_v3": _as_deepseek("deepseek_v3", "DeepseekV3"),
    "glm4_moe": _as_deepseek("glm4_moe", "Glm4Moe"),
    "qwen3_next": MtpForm(
        module="qwen3_next",
        classes="Qwen3Next",
        embedding_norm="pre_fc_norm_embedding",
        state_norm="pre_fc_norm_hidden",
        join="fc",
        layer="layers.0.",
        out_norm="norm",
        follows_normed=True,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MtpWeights:
    """A checked layer with its parts, float32, in no training mode.

    norms: of the embedding, of the state, and behind the layer. join: [D, 2 D], embedding first.
    head: [V, D] and embedding: [V, D]; None: the model's own. num_layers: of the model.
    """

    form: MtpForm
    config: Any
    num_layers: int
    norms: tuple[nn.Module, nn.Module, nn.Module]
    join: Tensor
    layer: nn.Module
    rotary: nn.Module
    head: Tensor | None
    embedding: Tensor | None


def has_mtp(names: Mapping[str, Any]) -> bool:
    """Whether tensors of these names are such a layer, or a checkpoint with one."""
    return any(_JOIN.fullmatch(name) or name.startswith(("mtp.", "model.mtp.")) for name in names)


def read_mtp(
    folder: Path,
    values: dict[str, Any],
    files: TensorFiles,
    *,
    hidden_size: int,
    vocab_size: int,
    num_layers: int,
) -> MtpWeights:
    """The layer in `folder` for a model of these sizes. Raises WeightsError, in one line.

    values: of its config.json.
    """
    kind = values.get("model_type")
    form = MTP_FORMS.get(kind) if isinstance(kind, str) else None
    if form is None:
        raise WeightsError(
            f"{folder}: multi-token-prediction layers of {kind!r} are not read; those of "
            f"{', '.join(MTP_FORMS)} are"
        )
    sizes = {
        "hidden_size": hidden_size,
        "vocab_size": vocab_size,
        "num_hidden_layers": num_layers,
    }
    for name, wanted in sizes.items():
        if values.get(name) != wanted:
            raise WeightsError(f"{folder}: {name} is {values.get(name)!r}, the model's is {wanted}")
    if any(name.endswith("_scale_inv") for name in files):
        raise WeightsError(f"{folder}: 8-bit floats with block scales; convert it to bfloat16")
    prefix = _prefix(folder, files)
    config, layer, rotary = _skeleton(folder, form, values)
    parts = _Parts(folder, files, prefix)
    for name, parameter in [*layer.named_parameters(), *layer.named_buffers()]:
        tensor = parts.of_layer(form.layer, name, tuple(parameter.shape))
        _put(layer, name, tensor)
    norms = tuple(
        _norm(form, config, parts.need(f"{name}.weight", (hidden_size,)))
        for name in (form.embedding_norm, form.state_norm, form.out_norm)
    )
    join = parts.need(f"{form.join}.weight", (hidden_size, 2 * hidden_size))
    shape = (vocab_size, hidden_size)
    head = parts.perhaps("shared_head.head.weight", shape)
    embedding = parts.perhaps("embed_tokens.weight", shape)
    parts.refuse_strange()
    return MtpWeights(
        form=form,
        config=config,
        num_layers=num_layers,
        norms=(norms[0], norms[1], norms[2]),
        join=join,
        layer=layer.eval().requires_grad_(False),
        rotary=rotary,
        head=head,
        embedding=embedding,
    )


class _Parts:
    """The tensors of one layer: finite, in float32, each of the shape that it must have."""

    def __init__(self, folder: Path, files: TensorFiles, prefix: str) -> None:
        self._folder, self._files, self._prefix = folder, files, prefix
        self._read: set[str] = set()

    def need(self, name: str, shape: tuple[int, ...]) -> Tensor:
        name = self._prefix + name
        self._read.add(name)
        tensor = self._files.need(name, shape)
        if not tensor.is_floating_point():
            raise WeightsError(f"{self._folder}: {name} holds {tensor.dtype}, not numbers")
        tensor = tensor.float()
        if not bool(tensor.isfinite().all()):
            raise WeightsError(f"{self._folder}: {name} holds values that are not finite")
        return tensor

    def perhaps(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        return self.need(name, shape) if self._prefix + name in self._files else None

    def of_layer(self, place: str, name: str, shape: tuple[int, ...]) -> Tensor:
        """One of the layer's tensors; experts are stored one by one and computed together."""
        if name not in (_GATE_UP, _DOWN):
            return self.need(place + name, shape)
        count, out, into = shape

        def experts(matrix: str, rows: int) -> Tensor:
            names = [f"{place}mlp.experts.{one}.{matrix}.weight" for one in range(count)]
            return torch.stack([self.need(one, (rows, into)) for one in names])

        if name == _DOWN:
            return experts("down_proj", out)
        return torch.cat([experts("gate_proj", out // 2), experts("up_proj", out // 2)], dim=1)

    def refuse_strange(self) -> None:
        """A tensor of the layer that was not read would mean a layer of another kind."""
        for name in self._files:
            if name.startswith(self._prefix) and name not in self._read:
                raise WeightsError(f"{self._folder}: {name}: no tensor of this kind of layer")


def _prefix(folder: Path, files: TensorFiles) -> str:
    """What the names of the layer's tensors begin with."""
    found = {int(match[1]): name for name in files if (match := _JOIN.fullmatch(name))}
    if found:
        name: str = found[min(found)]
        return name.removesuffix("eh_proj.weight")
    for prefix in ("mtp.", "model.mtp."):
        if f"{prefix}fc.weight" in files:
            return prefix
    raise WeightsError(f"{folder}: the tensor mtp.fc.weight is missing")


def _skeleton(
    folder: Path, form: MtpForm, values: dict[str, Any]
) -> tuple[Any, nn.Module, nn.Module]:
    """The family's config, its layer without weights, and its rotary frequencies."""
    for name, most in _MOST.items():
        if isinstance(value := values.get(name), int | float) and not 0 <= value <= most:
            raise WeightsError(f"{folder / 'config.json'}: {name} is {value!r}")
    try:
        config = form.made("Config").from_dict({**values, "quantization_config": None})
        index = int(config.num_hidden_layers)
        if getattr(config, "layer_types", None):
            config.layer_types = [*config.layer_types, "full_attention"]
        config._attn_implementation = ATTENTION_NAME
        config._experts_implementation = "eager"
        with torch.device("meta"):
            layer = form.made("DecoderLayer")(config, index)
        return config, layer, form.made("RotaryEmbedding")(config)
    except Exception as error:  # transformers raises many kinds for what it cannot read
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{folder / 'config.json'}: no such layer ({reason})") from error


def _norm(form: MtpForm, config: Any, weight: Tensor) -> nn.Module:
    norm: nn.Module = form.made("RMSNorm")(len(weight), eps=config.rms_norm_eps)
    _put(norm, "weight", weight)
    return norm.requires_grad_(False)


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Set a parameter or buffer of a module that was made without values."""
    *path, leaf = name.split(".")
    owner = module.get_submodule(".".join(path))
    if leaf in owner._parameters:
        setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False))
    else:
        setattr(owner, leaf, tensor)

"""Load the back of a model: the layers from `first_layer` on, the final norm and the head.

The layers are transformers' own code. The model is built on the meta device, so only the tensors
that are read take memory; every other layer takes none.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from cloud.attention.transformers_interface import ATTENTION_NAME
from cloud.engine.module_weights import check_weight_type, fill_module
from cloud.engine.referenced_files import ReferencedFiles
from cloud.engine.tensor_files import TensorFiles
from cloud.engine.token_embedding import TokenEmbedding
from cloud.errors import WeightsError
from cloud.kv.pool import KvShape
from hwprofiles.errors import ProfileError
from hwprofiles.schema.strict_json import read_json
from optimizer.artifacts.geometry import MAX_LAYERS
from optimizer.artifacts.weight_reference import REFERENCE_NAME
from optimizer.errors import ModelError
from optimizer.export.back import holds_transposed
from optimizer.export.sources.tensor_names import HEAD_NAME
from optimizer.families import back_family, head_dim_of

MAX_CONFIG_BYTES: Final = 1 << 20
_HEAD: Final = HEAD_NAME.removesuffix(".weight")


# Called with the layers read so far, and with all that are to be read.
LayerProgress = Callable[[int, int], None]


def _quiet(done: int, total: int) -> None:
    """For a load that nobody watches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackModel:
    """The loaded modules. `layers[i]` is layer `first_layer + i` of the model.

    `logits_divisor`: logits are divided by it (Granite). `final_softcap`: they become
    cap * tanh(logits / cap) (Gemma 2). `embedding`: None where the back does not begin with layer
    0, and in bundles of an older version.
    """

    config: Any
    first_layer: int
    layers: tuple[nn.Module, ...]
    norm: nn.Module
    head: nn.Module
    rotary: nn.Module
    logits_divisor: float | None
    final_softcap: float | None
    embedding: TokenEmbedding | None
    dtype: torch.dtype
    device: torch.device

    @property
    def num_layers(self) -> int:
        """L, counting the layers that are not here."""
        return self.first_layer + len(self.layers)

    @property
    def kv_shape(self) -> KvShape:
        """What a token's keys and values cost, in the type that the layers compute in."""
        return KvShape(
            num_layers=self.num_layers,
            num_kv_heads=self.config.num_key_value_heads,
            head_dim=head_dim_of(self.config),
            dtype=self.dtype,
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights held."""
        modules = (*self.layers, self.norm, self.head)
        tensors = (t for m in modules for t in (*m.parameters(), *m.buffers()))
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def load_back(
    folder: Path,
    *,
    first_layer: int,
    device: torch.device | str = "cpu",
    weight_files: Sequence[Path] | None = None,
    dtype: torch.dtype | None = None,
    weights: str | None = None,
    reference: Path | None = None,
    verify: bool = False,
    progress: LayerProgress = _quiet,
) -> BackModel:
    """Read `config.json` and the weights of `folder` (tensor names as transformers has them).

    weight_files: the safetensors files to read, such as those that a bundle's manifest lists.
    None: all of the folder, which is for folders without a manifest. reference: the bundle's
    `weights.json`, where it has one: weights are read in the model's folder then. verify: compare
    the full hash of the files that it names.

    dtype: what to compute in. None: on a CPU float32, to which 16-bit weights are widened (exact,
    and faster there); on CUDA bfloat16, unless the matrices are float32. A plan counts the same
    (`optimizer.cost.cloud.back_compute_bits`).

    weights: what to hold the linear layers' weights in, one of `weight_types.WEIGHT_TYPES`; None:
    what the files have. They are converted as they are read. The back then computes in bfloat16,
    unless dtype is given. 8 bits need Triton on the device.

    A linear layer's weight is NAME, or NAME.int8 [out, in] with NAME.scale [out]. Raises
    WeightsError for a model that is not supported, and for a tensor that is missing or of the wrong
    shape. progress is told (layers read, layers in all).
    """
    return BackFiles(
        folder,
        first_layer=first_layer,
        device=device,
        weight_files=weight_files,
        dtype=dtype,
        weights=weights,
        reference=reference,
        verify=verify,
    ).model(progress)


class BackFiles:
    """A back's files, opened: its modules get their weights when they are asked for.

    Arguments and errors are those of `load_back`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        first_layer: int,
        device: torch.device | str = "cpu",
        weight_files: Sequence[Path] | None = None,
        dtype: torch.dtype | None = None,
        weights: str | None = None,
        reference: Path | None = None,
        verify: bool = False,
    ) -> None:
        check_weight_type(weights, torch.device(device))
        config = read_config(folder)
        if not 0 <= first_layer <= config.num_hidden_layers:
            raise WeightsError(
                f"first layer {first_layer}: the model has {config.num_hidden_layers}"
            )
        if reference is None and (folder / REFERENCE_NAME).is_file() and weight_files is None:
            reference = folder / REFERENCE_NAME
        if weight_files is None:
            weight_files = sorted(folder.glob("*.safetensors"))
        self.first_layer = first_layer
        self._device = torch.device(device)
        self._weights = weights
        if reference is None:
            self._tensors = TensorFiles(folder, weight_files, self._device)
        else:
            self._tensors = ReferencedFiles(
                reference, self._device, verify=verify, transposed=holds_transposed(config)
            )
        if dtype is None and weights is not None:
            dtype = torch.bfloat16
        self._dtype = dtype or compute_dtype(
            self._device.type, has_float32_matrices=self._tensors.has_float32_matrix()
        )
        self._config = config
        self._take(model_skeleton(folder, config, self._dtype))

    def _take(self, skeleton: Any) -> None:
        """Make the modules from this model, which has no weights."""
        self._skeleton = skeleton
        self._decoder: Any = skeleton.get_decoder()
        self._prefix = next(
            name for name, module in skeleton.named_modules() if module is self._decoder
        )

    @property
    def num_layers(self) -> int:
        """L, counting the layers that are not here."""
        return int(self._config.num_hidden_layers)

    def model(self, progress: LayerProgress = _quiet) -> BackModel:
        """All of the back. progress is told (layers read, layers in all)."""
        layers: list[nn.Module] = []
        for index in range(self.first_layer, self.num_layers):
            progress(len(layers), self.num_layers - self.first_layer)
            layers.append(self.layer(index))
            self.unmap()  # else every page that was read counts as memory until the end
        return self.model_of(self.first_layer, tuple(layers), self.norm(), self.head())

    def model_of(
        self, first_layer: int, layers: tuple[nn.Module, ...], norm: nn.Module, head: nn.Module
    ) -> BackModel:
        """These parts as a back of their own."""
        config, family = self._config, back_family(self._config)
        return BackModel(
            config=self._skeleton.config,
            first_layer=first_layer,
            layers=layers,
            norm=norm,
            head=head,
            rotary=type(self._decoder.rotary_emb)(self._skeleton.config).to(self._device),
            logits_divisor=family.logits_divisor(config),
            final_softcap=family.logits_cap(config),
            embedding=self.embedding() if first_layer == 0 else None,
            dtype=self._dtype,
            device=self._device,
        )

    def layer(self, index: int) -> nn.Module:
        """Layer `index`, with its weights, which only the caller holds."""
        blank = copy.deepcopy(self._decoder.layers[index])
        return fill_module(
            blank, f"{self._prefix}.layers.{index}", self._tensors, self._dtype, self._weights
        )

    def norm(self) -> nn.Module:
        """The final norm."""
        name = back_family(self._config).final_norm
        blank = copy.deepcopy(getattr(self._decoder, name))
        return fill_module(
            blank, f"{self._prefix}.{name}", self._tensors, self._dtype, self._weights
        )

    def head(self) -> nn.Module:
        """The head."""
        blank = copy.deepcopy(self._skeleton.get_output_embeddings())
        head = nn.ModuleDict({_HEAD: blank})
        fill_module(head, "", self._tensors, self._dtype, self._weights)
        return head[_HEAD]

    def head_rows(self, count: int) -> nn.Linear:
        """The head of the first `count` tokens alone, in the type that the layers compute in."""
        rows = [self._tensors.row(HEAD_NAME, index) for index in range(count)]
        head = nn.Linear(self._config.hidden_size, count, bias=False, device="meta")
        head.weight = nn.Parameter(torch.cat(rows).to(self._dtype), requires_grad=False)
        name = f"{_HEAD}.bias"
        if name in self._tensors:
            bias = self._tensors.need(name, (self._config.vocab_size,))[:count]
            head.bias = nn.Parameter(bias.to(self._dtype), requires_grad=False)
        return head

    def unmap(self) -> None:
        """Let go of what was read of the files (`TensorFiles.unmap`)."""
        self._tensors.unmap()

    def embedding(self) -> TokenEmbedding | None:
        """Rows of tokens, where the files hold them."""
        return TokenEmbedding.of(
            self._tensors,
            shape=(self._config.vocab_size, self._config.hidden_size),
            is_tied=bool(self._config.tie_word_embeddings),
            factor=back_family(self._config).embedding_factor(self._config),
        )


def compute_dtype(device: str, *, has_float32_matrices: bool) -> torch.dtype:
    """What a back computes in on this type of device: see `load_back`."""
    return torch.float32 if device == "cpu" or has_float32_matrices else torch.bfloat16


def model_skeleton(folder: Path, config: Any, dtype: torch.dtype) -> Any:
    """transformers' whole model for a config of `folder`, on the meta device. WeightsError."""
    try:
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(
                config, attn_implementation=ATTENTION_NAME, dtype=dtype
            )
    except Exception as error:  # sizes that fit no model raise whatever the layers raise
        raise WeightsError(f"{folder}/config.json: makes no model ({error!r:.200})") from error
    return skeleton.eval()


def read_config(folder: Path) -> Any:
    """The transformers config of `folder`. Raises WeightsError, naming the file."""
    path = folder / "config.json"
    if not path.is_file():
        raise WeightsError(f"{folder}: config.json is missing")
    try:
        read_json(path, max_bytes=MAX_CONFIG_BYTES)  # transformers reads it without any bounds
    except ProfileError as error:
        raise WeightsError(str(error)) from error
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a hostile config makes transformers raise nearly anything
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{path}: not a readable model config ({reason})") from error
    try:
        back_family(config)
    except ModelError as error:
        raise WeightsError(f"{folder}: {error}") from error
    num_layers = config.num_hidden_layers
    if type(num_layers) is not int or not 1 <= num_layers <= MAX_LAYERS:
        raise WeightsError(f"{path}: num_hidden_layers must lie between 1 and {MAX_LAYERS}")
    return config

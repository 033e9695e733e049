"""LoRA adapters (peft): what a folder holds, and the change that it makes to one weight.

    weight + scale * B A,   scale = alpha / r, or alpha / sqrt(r) with rslora

with A [r, K] and B [N, r]. Source: Hu et al. 2021 (arXiv:2106.09685); Kalajdzievski 2023
(arXiv:2312.03732) for rslora. As in peft, `fan_in_fan_out` changes nothing for linear layers, which
all supported families have.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from optimizer.artifacts.bundle import sha256_of
from optimizer.errors import ModelError
from optimizer.export.sources.finite_values import check_finite
from optimizer.export.sources.model_json import read_object
from optimizer.export.sources.safetensors_header import StoredTensor, read_header

CONFIG_NAME: Final = "adapter_config.json"
WEIGHTS_NAME: Final = "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."
_PART: Final = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")
# Settings that make more of an adapter than a product added to a weight, by the name to tell.
_NOT_MERGED: Final[Mapping[str, str]] = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "lora_bias": "LoRA with biases",
    "modules_to_save": "an adapter with whole layers of its own (modules_to_save)",
    "trainable_token_indices": "an adapter with tokens of its own (trainable_token_indices)",
    "target_parameters": "LoRA of parameters (target_parameters)",
    "layer_replication": "an adapter that repeats layers (layer_replication)",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow",
    "megatron_config": "LoRA for Megatron",
}
# Ways to begin that change the base model's weights, so that the base on disk is not theirs.
_CHANGED_BASES: Final = ("pissa", "olora", "loftq", "corda", "lora_ga")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraChange:
    """What an adapter adds to one weight: scale * down [N, r] @ up [r, K]."""

    up: StoredTensor
    down: StoredTensor
    scale: float


class Adapter:
    """A LoRA adapter in a folder. changes: by the name of the weight that they change.

    Raises ModelError for what is no adapter, or none that can be merged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / CONFIG_NAME).is_file():
            raise ModelError(f"{folder}: no adapter here ({CONFIG_NAME} is missing)")
        self._config = read_object(folder / CONFIG_NAME)
        _check_kind(self._config, folder / CONFIG_NAME)
        if not (folder / WEIGHTS_NAME).is_file():
            raise ModelError(
                f"{folder}: {WEIGHTS_NAME} is missing (pickled weights are not read); "
                "save the adapter in safetensors"
            )
        self.changes = _changes(read_header(folder / WEIGHTS_NAME), self._config)
        self.base_name = str(self._config.get("base_model_name_or_path") or "")

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    def hash(self) -> str:
        """SHA-256 over settings and weights."""
        files = (self.folder / CONFIG_NAME, self.folder / WEIGHTS_NAME)
        return hashlib.sha256("".join(sha256_of(path) for path in files).encode()).hexdigest()

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """The weight `name` with its change, in float32. Raises ModelError for values that are not
        finite."""
        change = self.changes[name]
        up, down = self._read(change.up), self._read(change.down)
        return weight.to(torch.float32) + change.scale * (down @ up)

    def _read(self, stored: StoredTensor) -> Tensor:
        try:
            with safe_open(stored.file, framework="pt") as file:
                tensor: Tensor = file.get_tensor(stored.name)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{stored.origin}: not readable ({error}); fetch it again") from error
        check_finite(tensor, stored.origin)
        return tensor.to(torch.float32)


def _check_kind(config: Mapping[str, Any], path: Path) -> None:
    """ModelError, with the name, for an adapter that is not plain LoRA."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{path}: adapters of type {kind!r:.40} are not merged; LORA is")
    for key, what in _NOT_MERGED.items():
        if config.get(key):
            raise ModelError(
                f"{path}: {what} is not merged; merge it into its model first "
                "(peft: merge_and_unload)"
            )
    if config.get("bias", "none") != "none":
        raise ModelError(f"{path}: LoRA that trains biases (bias) is not merged; only 'none' is")
    begin = config.get("init_lora_weights")
    if isinstance(begin, str) and begin.lower().startswith(_CHANGED_BASES):
        raise ModelError(
            f"{path}: an adapter begun with {begin:.40} belongs to a changed base model; convert "
            "it to plain LoRA first (peft: path_initial_model_for_weight_conversion)"
        )


def _changes(
    header: Mapping[str, StoredTensor], config: Mapping[str, Any]
) -> dict[str, LoraChange]:
    sides: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in header.items():
        part = _PART.fullmatch(name)
        if part is None:
            raise ModelError(
                f"{tensor.origin}: not a matrix of LoRA for a linear layer, which is all that is "
                "merged; merge the adapter into its model first (peft: merge_and_unload)"
            )
        module = part["module"].removeprefix(_PREFIX)
        sides.setdefault(module, {})[part["side"]] = tensor
    changes = {}
    for module, found in sides.items():
        if found.keys() != {"A", "B"}:
            (only,) = found.values()
            raise ModelError(f"{only.origin}: its other half is missing; fetch the adapter again")
        up, down = found["A"], found["B"]
        rank = _number(config, "r", "rank_pattern", module, up)
        if (
            len(up.shape) != 2
            or len(down.shape) != 2
            or (up.shape[0], down.shape[1]) != (rank, rank)
        ):
            raise ModelError(
                f"{up.origin} and lora_B have shapes {list(up.shape)} and {list(down.shape)}, "
                f"which are not of rank {rank}; config and file are of different adapters"
            )
        alpha = _number(config, "lora_alpha", "alpha_pattern", module, up)
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        changes[f"{module}.weight"] = LoraChange(up=up, down=down, scale=scale)
    if not changes:
        raise ModelError("the adapter holds no tensors; fetch it again")
    return changes


def _number(
    config: Mapping[str, Any], key: str, pattern_key: str, module: str, tensor: StoredTensor
) -> float:
    """The setting of one module: of the first pattern that fits its name, else everyone's."""
    value = config.get(key)
    patterns = config.get(pattern_key) or {}
    for pattern, special in patterns.items() if isinstance(patterns, dict) else ():
        try:
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                value = special
                break
        except re.error:
            continue
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ModelError(
            f"{tensor.file.parent / CONFIG_NAME}: {key} must be above 0, not {value!r:.40}"
        )
    return value

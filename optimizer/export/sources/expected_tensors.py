"""The tensors that an architecture needs, and the comparison with those that a file holds.

transformers' own model, made without memory (the meta device), says names and shapes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from optimizer.errors import ModelError
from optimizer.export.sources.quantized import refuse_quantization_part, refuse_quantized_tensor
from optimizer.export.sources.safetensors_header import StoredTensor
from optimizer.export.sources.tensor_names import HEAD_NAME

# Values that every model computes itself. Old checkpoints stored them.
_DERIVED: Final = re.compile(r"\.rotary_emb\.(inv_freq|cos_cached|sin_cached)$")
_ADAPTER: Final = re.compile(
    r"\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|base_layer)\b"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedTensors:
    """Shapes by name. optional: names that a checkpoint may leave out (a head that is tied)."""

    shapes: Mapping[str, tuple[int, ...]]
    optional: frozenset[str]


def make_skeleton(config: Any, where: str) -> Any:
    """The transformers model of a config, without values. It has a copy of the config.

    Raises ModelError, naming `where`, for sizes that fit no model.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(copy.deepcopy(config))
    except Exception as error:  # whatever the layers raise
        reason = " ".join(str(error).split())[:160]
        raise ModelError(f"{where}: the config's sizes make no model ({reason})") from error


def expected_tensors(skeleton: Any) -> ExpectedTensors:
    """What a checkpoint of this model holds."""
    shapes = {name: tuple(value.shape) for name, value in skeleton.state_dict().items()}
    tied = bool(skeleton.config.tie_word_embeddings)
    return ExpectedTensors(shapes=shapes, optional=frozenset({HEAD_NAME} if tied else ()))


def compare(
    stored: Mapping[str, StoredTensor], expected: ExpectedTensors, where: str
) -> dict[str, StoredTensor]:
    """The stored tensors that a build reads, by Hugging Face's names.

    stored: by these names. where: what messages name for a tensor that is nowhere. Raises
    ModelError for quantized weights, adapters, tensors that the architecture does not have, missing
    tensors, and wrong shapes.
    """
    others = sorted(stored.keys() - expected.shapes.keys())
    unknown = [name for name in others if not _DERIVED.search(name)]
    for name in unknown:
        refuse_quantization_part(stored[name].origin, name)
    for name in sorted(expected.shapes.keys() & stored.keys()):
        refuse_quantized_tensor(stored[name].origin, name, stored[name].dtype)
    for name in unknown:
        if _ADAPTER.search(name):
            raise ModelError(
                f"{stored[name].origin}: a part of an adapter; merge it into its model first "
                "(peft: merge_and_unload)"
            )
    missing = sorted(expected.shapes.keys() - stored.keys() - expected.optional)
    if missing:
        raise ModelError(
            f"{where}: the tensor {missing[0]}{_more(missing)} is missing; the config is of "
            "another model, or the download is incomplete"
        )
    if unknown:
        raise ModelError(
            f"{stored[unknown[0]].origin}{_more(unknown)}: not a tensor of the architecture that "
            "config.json names; the config is of another model, or the files are"
        )
    for name, shape in expected.shapes.items():
        if name in stored and stored[name].shape != shape:
            raise ModelError(
                f"{stored[name].origin} has shape {list(stored[name].shape)}, the config says "
                f"{list(shape)}; the config is of another model, or the file is"
            )
    return {name: stored[name] for name in expected.shapes if name in stored}


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""

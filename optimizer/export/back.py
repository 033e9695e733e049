"""The cloud's part of a bundle: the back layers, the final norm and the head, tensor by tensor.

    cloud/config.json            the whole model's config: the server makes its modules from it
    cloud/back-00001.safetensors ... shards of at most 512 MiB, Hugging Face tensor names

At 8 bits a matrix NAME is stored as `NAME.int8` (int8 [out, in]) and `NAME.scale` (float32
[out]): symmetric, one scale an output channel, rounded to the nearest. A row of activations thus
meets the same weights whoever shares its batch. Norms and biases stay float32. 16 bits means
bfloat16. It has float32's range, which massive activations need, and most weights come in it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import save_file

from optimizer.artifacts.plan import Plan
from optimizer.export.sources.tensor_names import EMBEDDING_NAME, HEAD_NAME, layer_of
from optimizer.families import family_of

if TYPE_CHECKING:
    # The server uses this module too, and reading a model's source needs the build's packages.
    from optimizer.export.sources.model_source import ModelSource

SHARD_BYTES: Final = 512 << 20
CONFIG_NAME: Final = "config.json"
_ROUNDED_AT_ONCE: Final = 8 << 20  # values: a head of a large vocabulary has half a billion


def write_back(source: ModelSource, plan: Plan, cloud_dir: Path) -> None:
    """Write the back of `plan` into `cloud_dir`, with one shard in memory at a time."""
    write_config(source.config, cloud_dir)
    shard: dict[str, torch.Tensor] = {}
    num_shards = 0
    for name, tensor in back_tensors(source, plan):
        shard_bytes = sum(kept.numel() * kept.element_size() for kept in shard.values())
        if shard and shard_bytes + tensor.numel() * tensor.element_size() > SHARD_BYTES:
            num_shards += 1
            _save_shard(shard, cloud_dir, num_shards)
            shard = {}
        shard[name] = tensor
    _save_shard(shard, cloud_dir, num_shards + 1)


def write_config(config: Any, cloud_dir: Path) -> None:
    """Write `config.json`. Values that JSON has no number for (a default of infinity, which
    transformers has by itself) are left out."""
    values = {name: value for name, value in config.to_dict().items() if _is_json(value)}
    text = json.dumps(values, indent=1, default=str)
    (cloud_dir / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, default=str, allow_nan=False)
    except ValueError:
        return False
    return True


def back_tensors(source: ModelSource, plan: Plan) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of the back at `back_bits`, read and converted one at a time.

    Raises ModelError for values that are not finite, before or after the conversion.
    """
    names = back_names(source, plan)
    for name in names:
        kept = back_name(name, names)
        bits = back_tensor_bits(kept, plan.partition.back_bits)
        tensor = source.read(name, fits=stored_type(bits))
        yield from stored_tensors(kept, tensor, bits, transposed=holds_transposed(source.config))


def holds_transposed(config: Any) -> bool:
    """Whether a model of this config holds its experts' matrices as inputs by outputs."""
    family = family_of(config)
    return family is not None and family.experts is not None and family.experts.transposed


def back_names(source: ModelSource, plan: Plan) -> list[str]:
    """Names of the tensors of a back.

    The embedding's is there where it is the head, and where the back holds all layers: then the
    server can compute a row from its token's id.
    """
    names = source.tensor_names
    found = sorted(name for name in names if _belongs_to_back(name, plan.back_start))
    return found if HEAD_NAME in names and plan.back_start > 0 else [*found, EMBEDDING_NAME]


def back_name(name: str, names: Container[str]) -> str:
    """What a back calls the tensor `name`. names: all of its tensors, as the model has them."""
    return HEAD_NAME if name == EMBEDDING_NAME and HEAD_NAME not in names else name


def back_tensor_bits(kept: str, back_bits: int) -> int:
    """Bits of the tensor that a back calls `kept`. An embedding is not rounded to 8."""
    return max(back_bits, 16) if kept == EMBEDDING_NAME else back_bits


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric 8-bit codes [out, in] and float32 scales [out] of a matrix [out, in].

    Scale: the row's largest magnitude over 127 (round to nearest).
    """
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = []
    rows = max(1, _ROUNDED_AT_ONCE // max(1, weight[:1].numel()))
    for begin in range(0, len(weight), rows):
        part = weight[begin : begin + rows].to(torch.float32)
        scale = part.abs().amax(dim=1) / 127
        divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
        codes[begin : begin + rows] = torch.round(part / divisor[:, None]).clamp(-127, 127)
        scales.append(scale)
    return codes, torch.cat(scales)


def _belongs_to_back(name: str, back_start: int) -> bool:
    layer = layer_of(name)
    if layer is not None:
        return layer >= back_start
    return name != EMBEDDING_NAME


def stored_type(bits: int) -> torch.dtype:
    """What values must fit into. At 8 bits a row's scale is float32, and smaller than the row."""
    return torch.bfloat16 if bits == 16 else torch.float32


def stored_tensors(
    name: str, tensor: torch.Tensor, bits: int, *, transposed: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """A tensor as a back holds it: itself in another type, or codes and scales of its rows.

    transposed: experts' matrices [E, K, N] are inputs by outputs; their codes are [E, N, K].
    """
    if tensor.ndim < 2 or bits == 32:
        yield name, tensor.to(torch.float32).contiguous()
    elif bits == 16 or not is_coded(name, tensor.ndim):
        yield name, tensor.to(torch.bfloat16).contiguous()
    else:
        rows = tensor.transpose(1, 2) if tensor.ndim == 3 and transposed else tensor
        codes, scale = quantize_rows(rows.reshape(-1, rows.shape[-1]))
        yield f"{name}.int8", codes.view(rows.shape)
        yield f"{name}.scale", scale.view(rows.shape[:-1])


def is_coded(name: str, num_axes: int) -> bool:
    """Whether a back of 8 bits holds this tensor as codes: matrices but those that route."""
    return num_axes > 1 and not name.endswith(("bias", ".mlp.gate.weight", ".mlp.router.weight"))


def _save_shard(shard: dict[str, torch.Tensor], cloud_dir: Path, number: int) -> None:
    """Write one shard that whoever may read the bundle's other files may read.

    safetensors makes files for their owner alone. A server in a container or a unit has another
    user than the one who built.
    """
    path = cloud_dir / f"back-{number:05}.safetensors"
    save_file(shard, path)
    shutil.copymode(cloud_dir / CONFIG_NAME, path)

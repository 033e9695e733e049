"""A back that stays where the model is: the bundle says which tensors of which files to read."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open

from optimizer.artifacts.plan import Plan
from optimizer.artifacts.weight_reference import REFERENCE_NAME, ReferencedFile, WeightReference
from optimizer.errors import BuildError
from optimizer.export.back import back_names, stored_type, write_config
from optimizer.export.sources.model_source import ModelSource
from optimizer.export.sources.safetensors_header import StoredTensor

_PLAIN: Final = ("F32", "F16", "BF16")
_PART_VALUES: Final = 1 << 25


class NotReferableError(BuildError):
    """The model's files do not hold the back's tensors as they are used."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"--weights reference: {reason}; use --weights copy")


def write_reference(source: ModelSource, plan: Plan, cloud_dir: Path) -> None:
    """Write config.json and weights.json into `cloud_dir`.

    Every tensor is read once: its values are checked, and so is that the file holds just what the
    source gives. Raises NotReferableError where it does not: for GGUF, and for weights that are
    merged or unpacked.
    """
    for name in back_names(source, plan):
        stored = source.stored(name)
        if stored.file.suffix != ".safetensors" or stored.dtype not in _PLAIN:
            raise NotReferableError(f"{stored.origin} ({stored.dtype}) cannot be read in place")
    write_config(source.config, cloud_dir)
    tensors: dict[str, tuple[str, str]] = {}
    paths: dict[str, Path] = {}
    for name in back_names(source, plan):
        stored = source.stored(name)
        values = source.read(name, fits=stored_type(plan.partition.back_bits))
        if not _holds(stored, values):
            raise NotReferableError(f"{stored.origin} is not used as it is stored")
        tensors[name] = (stored.file.name, stored.name)
        paths[stored.file.name] = stored.file
    folders = {path.resolve().parent for path in paths.values()}
    if len(folders) != 1:
        raise NotReferableError("the model's files lie in several folders")
    WeightReference(
        folder=folders.pop(),
        back_bits=plan.partition.back_bits,
        files={name: ReferencedFile.of(path) for name, path in sorted(paths.items())},
        tensors=tensors,
    ).save(cloud_dir / REFERENCE_NAME)


def _holds(stored: StoredTensor, values: torch.Tensor) -> bool:
    """Whether the file's tensor has just these values. Of a large one, a part is read at a time."""
    values = values if values.ndim else values[None]
    step = max(1, _PART_VALUES // max(1, values[:1].numel()))
    for begin in range(0, len(values), step):
        with safe_open(stored.file, framework="pt") as file:  # closing it frees what was read
            if stored.name not in file.keys():  # noqa: SIM118
                return False
            if stored.shape == ():
                part = file.get_tensor(stored.name)[None]
            else:
                part = file.get_slice(stored.name)[begin : begin + step]
            if not torch.equal(part, values[begin : begin + step]):
                return False
    return True

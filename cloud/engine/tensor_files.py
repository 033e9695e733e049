"""The tensors of a bundle's safetensors files by name, read when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from cloud.errors import WeightsError

# A matrix at 8 bits is two tensors: NAME.int8 [out, in] and NAME.scale [out].
CODES_SUFFIX: Final = ".int8"
SCALE_SUFFIX: Final = ".scale"


class TensorCut(NamedTuple):
    """The part of a tensor that one rank of a tensor-parallel group holds.

    ranges: places [begin, end) along `axis`, joined in this order. size: places that the whole
    tensor has along it. is_zero: another rank adds this tensor; here it is zeros.
    """

    axis: int
    ranges: tuple[tuple[int, int], ...]
    size: int
    is_zero: bool = False

    @property
    def num_kept(self) -> int:
        """Places along `axis` that are held."""
        return sum(end - begin for begin, end in self.ranges)


class TensorFiles(Mapping[str, Tensor]):
    """All tensors of some safetensors files by name, read when asked for.

    `cuts`: by name, the tensors of which `need` reads a part. Rows are always whole.
    """

    cuts: Mapping[str, TensorCut] = MappingProxyType({})

    def __init__(self, folder: Path, paths: Sequence[Path], device: torch.device) -> None:
        self._folder = folder
        self._device = device
        self._path_of: dict[str, Path] = {}
        self._opened: dict[Path, Any] = {}
        self._state_of: dict[Path, tuple[int, ...]] = {}
        for path in paths:
            names = self._open(path).keys()
            twice = self._path_of.keys() & names
            if twice:
                raise WeightsError(f"{path}: another file holds {min(twice)} too")
            self._path_of |= dict.fromkeys(names, path)
        if not self._path_of:
            raise WeightsError(f"{folder}: no safetensors file")

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file_with(name).get_tensor(name)
        return tensor

    def __iter__(self) -> Any:
        return iter(self._path_of)

    def __len__(self) -> int:
        return len(self._path_of)

    def __contains__(self, name: object) -> bool:
        return name in self._path_of

    def unmap(self) -> None:
        """Close the files, which are mapped: what was read of them leaves this process's memory.

        They are opened again when they are needed; WeightsError then where a file is another one
        than before. Tensors that were not converted keep theirs.
        """
        self._opened.clear()

    def need(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor of this name and shape; WeightsError where it is not there.

        shape: of the part where `cuts` names one.
        """
        if name not in self:
            raise WeightsError(f"{self._folder}: the tensor {name} is missing")
        if (cut := self.cuts.get(name)) is not None:
            return self._part(name, shape, cut)
        tensor = self[name]
        if tuple(tensor.shape) != shape:
            raise WeightsError(
                f"{self._folder}: {name} has shape {tuple(tensor.shape)}, expected {shape}"
            )
        return tensor

    def need_codes(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Codes int8 of experts' matrices [E, ., .], which may be stored transposed."""
        if name not in self:
            raise WeightsError(f"{self._folder}: the tensor {name} is missing")
        cut = self.cuts.get(name)
        codes = self[name] if cut is None else self._part(name, shape, cut)
        if tuple(codes.shape) not in (shape, (shape[0], shape[2], shape[1])):
            raise WeightsError(
                f"{self._folder}: {name} has shape {tuple(codes.shape)}, expected {shape}"
            )
        if codes.dtype != torch.int8:
            raise WeightsError(f"{self._folder}: {name} has dtype {codes.dtype}, expected int8")
        return codes

    def has_rows(self, name: str) -> bool:
        """Whether `row` can read this matrix."""
        return name in self or name + CODES_SUFFIX in self

    def check_rows(self, name: str, shape: tuple[int, int]) -> None:
        """WeightsError unless `row` reads a matrix of this shape; reads no value of it."""
        parts: dict[str, tuple[int, ...]] = {name: shape}
        if name not in self:
            parts = {name + CODES_SUFFIX: shape, name + SCALE_SUFFIX: shape[:1]}
        for part, expected in parts.items():
            if part not in self:
                raise WeightsError(f"{self._folder}: the tensor {part} is missing")
            found = self._shape_of(part)
            if found != expected:
                raise WeightsError(f"{self._folder}: {part} has shape {found}, expected {expected}")

    def row(self, name: str, index: int) -> Tensor:
        """Row `index` of a matrix, float32 [1, D], as the layers would see it."""
        if name in self:
            return self._slice(name, index).float()
        codes, scale = name + CODES_SUFFIX, name + SCALE_SUFFIX
        return self._slice(codes, index).float() * self._slice(scale, index).float()[:, None]

    def _part(self, name: str, shape: tuple[int, ...], cut: TensorCut) -> Tensor:
        """A part of this shape; it shares no memory with the whole tensor."""
        whole = (*shape[: cut.axis], cut.size, *shape[cut.axis + 1 :])
        found = self._shape_of(name)
        if found != whole or shape[cut.axis] != cut.num_kept:
            raise WeightsError(f"{self._folder}: {name} has shape {found}, expected {whole}")
        if cut.is_zero:
            return torch.zeros(shape, device=self._device)
        return self._ranges(name, cut)

    def _ranges(self, name: str, cut: TensorCut) -> Tensor:
        stored = self._file_with(name).get_slice(name)
        before = (slice(None),) * cut.axis
        parts = [stored[(*before, slice(begin, end))] for begin, end in cut.ranges]
        return parts[0].clone() if len(parts) == 1 else torch.cat(parts, dim=cut.axis)

    def _shape_of(self, name: str) -> tuple[int, ...]:
        return tuple(self._file_with(name).get_slice(name).get_shape())

    def _slice(self, name: str, index: int) -> Tensor:
        part: Tensor = self._file_with(name).get_slice(name)[index : index + 1]
        return part

    def _file_with(self, name: str) -> Any:
        """The open file that holds the tensor."""
        return self._open(self._path_of[name])

    def _open(self, path: Path) -> Any:
        if path not in self._opened:
            try:
                self._opened[path] = safe_open(path, framework="pt", device=str(self._device))
                found = path.stat()
            except Exception as error:
                raise WeightsError(f"{path}: not readable as safetensors ({error})") from error
            state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
            if self._state_of.setdefault(path, state) != state:
                raise WeightsError(f"{path}: the file was replaced while it was read; start again")
        return self._opened[path]

    def has_float32_matrix(self) -> bool:
        """Whether a matrix is float32, which decides what the layers compute in on CUDA."""
        return any(self._is_float32_matrix(name) for name in self)

    def _is_float32_matrix(self, name: str) -> bool:
        part = self._file_with(name).get_slice(name)
        return part.get_dtype() == "F32" and len(part.get_shape()) > 1

"""Weights that are read where the model is: 8-bit codes are made as they are loaded.

The same function makes them that writes a bundle's own weights (`optimizer.export.back`), so the
codes have the same bits either way. One tensor is in memory at a time beside what is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from cloud.engine.tensor_files import CODES_SUFFIX, SCALE_SUFFIX, TensorCut, TensorFiles
from cloud.errors import WeightsError
from optimizer.artifacts.weight_reference import WeightReference
from optimizer.errors import BundleError
from optimizer.export.back import back_name, back_tensor_bits, is_coded, stored_tensors


class ReferencedFiles(TensorFiles):
    """The tensors of a `WeightReference`, as a bundle with a copy of them would name them."""

    def __init__(
        self, path: Path, device: torch.device, *, verify: bool, transposed: bool = False
    ) -> None:
        """Checks the files, all of their bytes where `verify`. Raises WeightsError.

        transposed: experts' matrices are inputs by outputs.
        """
        self._transposed = transposed
        try:
            self._reference = WeightReference.load(path)
            self._reference.check(verify=verify)
        except BundleError as error:
            raise WeightsError(str(error)) from error
        reference = self._reference
        super().__init__(reference.folder, [reference.folder / n for n in reference.files], device)
        self._place: dict[str, str] = {}  # in a file, by the name that the back gives a tensor
        for name, (_, stored) in reference.tensors.items():
            if stored not in self._path_of:
                raise WeightsError(f"{reference.folder}: the tensor {stored} is missing")
            num_axes = len(super()._shape_of(stored))
            kept = back_name(name, reference.tensors)
            bits = back_tensor_bits(kept, reference.back_bits)
            coded = bits == 8 and is_coded(kept, num_axes)
            for suffix in (CODES_SUFFIX, SCALE_SUFFIX) if coded else ("",):
                self._place[kept + suffix] = stored
        self._last: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._last:
            stored = self._place[name]
            tensor = self._file_with(stored).get_tensor(stored)
            self._last = dict(self._as_kept(name, tensor))
        return self._last.pop(name)

    def row(self, name: str, index: int) -> Tensor:
        """See TensorFiles. A row's code depends on that row alone."""
        stored = self._place[name if name in self else name + CODES_SUFFIX]
        row = self._file_with(stored).get_slice(stored)[index : index + 1]
        made = dict(self._as_kept(name, row))
        if name in made:
            return made[name].float()
        return made[name + CODES_SUFFIX].float() * made[name + SCALE_SUFFIX].float()[:, None]

    def _ranges(self, name: str, cut: TensorCut) -> Tensor:
        """A row's scale is that of the whole row, so the codes are made before they are cut."""
        whole = self[name]
        parts = [whole.narrow(cut.axis, begin, end - begin) for begin, end in cut.ranges]
        return torch.cat(parts, dim=cut.axis)

    def _shape_of(self, name: str) -> tuple[int, ...]:
        shape = super()._shape_of(self._place[name])
        return shape[:-1] if name.endswith(SCALE_SUFFIX) else shape

    def _as_kept(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        kept = name.removesuffix(CODES_SUFFIX).removesuffix(SCALE_SUFFIX)
        bits = back_tensor_bits(kept, self._reference.back_bits)
        return stored_tensors(kept, tensor, bits, transposed=self._transposed)

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, name: object) -> bool:
        return name in self._place

    def has_float32_matrix(self) -> bool:
        """See TensorFiles: the matrices become float32 where the back has 32 bits."""
        return self._reference.back_bits == 32

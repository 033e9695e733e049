"""A model with a LoRA adapter: another source, whose weights are merged as they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from optimizer.errors import ModelError
from optimizer.export.sources.adapter import Adapter
from optimizer.export.sources.model_source import ModelSource
from optimizer.export.sources.packed.matrix_grid import QuantizedMatrix
from optimizer.export.sources.safetensors_header import StoredTensor


class AdaptedSource(ModelSource):
    """See the module. `sha256` covers the model and the adapter.

    Raises ModelError for an adapter of another model: one that changes weights that are not there,
    or are of another shape.
    """

    def __init__(self, base: ModelSource, adapter: Adapter) -> None:
        self._base = base
        self._adapter = adapter
        self.id = f"{base.id}+{adapter.name}"
        self.format = f"{base.format} with a LoRA adapter"
        self.quantization = base.quantization
        self.notes = base.notes
        if adapter.base_name:
            self.notes += (f"the adapter says that it was made for {adapter.base_name:.100}",)
        if (adapter.folder / "tokenizer.json").is_file():
            self.notes += ("the adapter's own tokenizer and chat template are not used",)
        self._check_changes()

    @property
    def config(self) -> Any:
        """See ModelSource."""
        return self._base.config

    @property
    def place(self) -> Path:
        """See ModelSource."""
        return self._base.place

    def _load_tokenizer(self) -> Any:
        """See ModelSource."""
        return self._base.load_tokenizer()

    def stored_types(self) -> dict[str, int]:
        """See ModelSource."""
        return self._base.stored_types()

    def _hash(self) -> str:
        return hashlib.sha256(f"{self._base.sha256}{self._adapter.hash()}".encode()).hexdigest()

    def _stored(self) -> Mapping[str, StoredTensor]:
        return self._base.stored_tensors()

    def _read(self, stored: StoredTensor) -> torch.Tensor:
        weight = self._base._read(stored)
        name = self._changed.get(stored)
        return weight if name is None else self._adapter.merged(name, weight)

    def _blocks(self, stored: StoredTensor) -> QuantizedMatrix | None:
        return None if stored in self._changed else self._base._blocks(stored)

    def _configured_stops(self) -> Iterable[int]:
        return self._base._configured_stops()

    @cached_property
    def _changed(self) -> dict[StoredTensor, str]:
        """The stored weights that the adapter changes, with their names."""
        stored = self.stored_tensors()
        return {stored[name]: name for name in self._adapter.changes}

    def _check_changes(self) -> None:
        stored = self.stored_tensors()
        for name, change in self._adapter.changes.items():
            if name not in stored:
                raise ModelError(
                    f"{change.up.origin}: {self.id.partition('+')[0]} has no {name}; the adapter "
                    "is of another model, or changes a head that is the embedding"
                )
            shape = (change.down.shape[0], change.up.shape[1])
            if stored[name].shape != shape:
                raise ModelError(
                    f"{change.up.origin} changes a matrix {list(shape)}, and {name} is "
                    f"{list(stored[name].shape)}; the adapter is of another model"
                )

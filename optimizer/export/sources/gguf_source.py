"""A model in GGUF, read with transformers' names and weight transformations."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from optimizer.artifacts.bundle import sha256_of
from optimizer.errors import ModelError
from optimizer.export.sources.gguf_config import gguf_config
from optimizer.export.sources.gguf_files import GgufFiles, is_readable, read_as_plain_array
from optimizer.export.sources.gguf_positions import FACTOR_TENSORS
from optimizer.export.sources.model_source import ModelSource
from optimizer.export.sources.packed.matrix_grid import QuantizedMatrix
from optimizer.export.sources.safetensors_header import StoredTensor

_PLAIN_TYPES: Final = ("F32", "F16", "BF16")


class GgufSource(ModelSource):
    """See the module. `sha256` is the file's, or the hash of all parts' hashes.

    Raises ModelError for what is no readable model.
    """

    format = "GGUF"

    def __init__(self, path: Path) -> None:
        self._files = GgufFiles(path)
        self.path = self._files.path
        self.id = self.path.stem
        self._config = gguf_config(self._files)
        types = {tensor.tensor_type.name for tensor in self._files.tensors.values()}
        packed = sorted(types.difference(_PLAIN_TYPES))
        self.quantization = ", ".join(packed) or None

    @property
    def config(self) -> Any:
        """See ModelSource."""
        return self._config

    @property
    def place(self) -> Path:
        """See ModelSource."""
        return self.path

    def _load_tokenizer(self) -> Any:
        """See ModelSource."""
        from transformers import AutoTokenizer

        try:
            with read_as_plain_array():
                return AutoTokenizer.from_pretrained(
                    self.path.parent, gguf_file=self.path.name, local_files_only=True
                )
        except Exception as error:  # a broken file makes it raise nearly anything
            reason = " ".join(str(error).split())[:160]
            raise ModelError(f"{self.path}: its tokenizer is not readable ({reason})") from error

    def _hash(self) -> str:
        if len(self._files.paths) == 1:
            return sha256_of(self.path)
        hashes = "".join(sha256_of(part) for part in self._files.paths)
        return hashlib.sha256(hashes.encode()).hexdigest()

    def _stored(self) -> Mapping[str, StoredTensor]:
        name_of = self._name_of
        stored = {}
        for name, tensor in self._files.tensors.items():
            if name in FACTOR_TENSORS:
                continue
            if not is_readable(tensor.tensor_type):
                raise ModelError(
                    f"{self.path}: {name} has type {tensor.tensor_type.name}, which is not read; "
                    "use another quantization of the model (Q8_0, Q4_K_M, F16)"
                )
            stored[name_of.get(name, name)] = StoredTensor(
                file=self._files.file_of[name],
                name=name,
                dtype="F32",  # what it is read as
                shape=tuple(int(size) for size in reversed(tensor.shape)),
                num_bytes=int(tensor.n_bytes),
            )
        return stored

    def stored_types(self) -> dict[str, int]:
        """See ModelSource."""
        counts: dict[str, int] = {}
        for tensor in self._files.tensors.values():
            kind = tensor.tensor_type.name
            counts[kind] = counts.get(kind, 0) + 1
        return counts

    def _read(self, stored: StoredTensor) -> torch.Tensor:
        values = self._files.values(stored.name)
        processed = self._processor.process(weights=values, name=stored.name)
        return torch.from_numpy(np.array(processed.weights, dtype=np.float32))

    @cached_property
    def _processor(self) -> Any:
        """What changes the weights back to transformers' form, chosen as transformers does."""
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

        kind = TENSOR_PROCESSORS.get(self._files.architecture, TensorProcessor)
        return kind(config=self._config.to_dict())

    def _blocks(self, stored: StoredTensor) -> QuantizedMatrix | None:
        grid = self._files.grid(stored.name)
        if grid is None:
            return None
        rows = np.arange(len(grid.codes))[:, None]
        order = np.asarray(self._processor.process(weights=rows, name=stored.name).weights)
        return grid.rows(torch.from_numpy(order[:, 0].copy())).blocks()

    @cached_property
    def _name_of(self) -> dict[str, str]:
        """Hugging Face's name of each name in the file."""
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

        found = [
            kind for kind, name in MODEL_ARCH_NAMES.items() if name == self._files.architecture
        ]
        if not found:
            raise ModelError(
                f"{self.path}: architecture {self._files.architecture!r:.40} is not read from "
                "GGUF; use the model's safetensors folder"
            )
        known = get_tensor_name_map(found[0], self._config.num_hidden_layers)
        names: dict[str, str] = {}
        for name in self._skeleton.state_dict():
            stem, _, last = name.rpartition(".")
            stored = known.get_name(stem)
            if stored is not None:
                names[f"{stored}.{last}"] = name
        return names

"""A model in a Hugging Face folder: config.json and safetensors files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from optimizer.artifacts.bundle import sha256_of
from optimizer.errors import ModelError
from optimizer.export.sources.checkpoint_files import checkpoint_files
from optimizer.export.sources.config_geometry import read_config
from optimizer.export.sources.experts import fused_experts
from optimizer.export.sources.internlm2 import MODEL_TYPE, InternLm2Names
from optimizer.export.sources.model_json import (
    check_tokenizer_files,
    configured_stops,
    read_object,
)
from optimizer.export.sources.model_source import ModelSource
from optimizer.export.sources.packed.assembly import Assembly
from optimizer.export.sources.packed.matrix_grid import QuantizedMatrix
from optimizer.export.sources.quantized import SECTIONS, packed_format_of
from optimizer.export.sources.safetensors_header import StoredTensor


class FolderSource(ModelSource):
    """See the module. `sha256` covers config.json and the files of weights that are read.

    Raises ModelError for what is no readable checkpoint, and for packed weights that are not read.
    """

    format = "safetensors"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = folder.resolve().name
        self._files = checkpoint_files(folder)
        self.notes = self._files.notes
        path = folder / "config.json"
        values = read_object(path)
        self._packed = packed_format_of(values, path)
        self._config = read_config(path)
        if values.get("model_type") == MODEL_TYPE:
            if self._packed is not None:
                raise ModelError(f"{path}: a quantized InternLM2 is not read")
            self._packed = InternLm2Names.of(self._config)
            return
        if self._packed is not None:
            self.quantization = self._packed.name
            for section in SECTIONS:  # what is read of the model is dequantized
                if hasattr(self._config, section):
                    delattr(self._config, section)
            if left_out := self._assembly.left_out:
                self.notes = (*self.notes, _note_of(left_out))

    def _hash(self) -> str:
        digest = hashlib.sha256(sha256_of(self.folder / "config.json").encode())
        for weights in self._files.files:
            digest.update(sha256_of(weights).encode())
        return digest.hexdigest()

    @property
    def config(self) -> Any:
        """See ModelSource."""
        return self._config

    @property
    def place(self) -> Path:
        """See ModelSource."""
        return self.folder

    def _load_tokenizer(self) -> Any:
        """See ModelSource."""
        from transformers import AutoTokenizer

        check_tokenizer_files(self.folder)
        try:
            return AutoTokenizer.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # broken files make it raise nearly anything
            reason = " ".join(str(error).split())[:160]
            raise ModelError(
                f"{self.folder}: its tokenizer is not readable ({reason}); fetch the model again"
            ) from error

    @cached_property
    def _assembly(self) -> Assembly:
        """The weights that are stored packed."""
        if self._packed is None:
            return Assembly()
        assembly = self._packed.assemble(self._files.tensors, self._read_file)
        if not assembly.weights:
            raise ModelError(
                f"{self.folder}: config.json says {self._packed.name}, and no weight is packed so; "
                "the config is of another checkpoint than the files"
            )
        return assembly

    def stored_types(self) -> dict[str, int]:
        """See ModelSource."""
        return dict(Counter(tensor.dtype for tensor in self._files.tensors.values()).most_common())

    @cached_property
    def _matrices(self) -> dict[str, StoredTensor]:
        """The files' tensors with unpacked weights in the place of packed ones."""
        assembly = self._assembly
        dropped = assembly.used | set(assembly.left_out) | self._empty_biases()
        plain = {name: t for name, t in self._files.tensors.items() if name not in dropped}
        both = sorted(plain.keys() & assembly.weights.keys())
        if both:
            raise ModelError(
                f"{plain[both[0]].origin} is there twice, packed and plain; fetch the model again"
            )
        return plain | {name: weight.stored for name, weight in assembly.weights.items()}

    @cached_property
    def _experts(self) -> Assembly:
        """The matrices of all experts, of those that are stored one by one."""
        wanted = self._skeleton.state_dict().keys() if _has_experts(self._matrices) else ()
        return fused_experts(self._matrices, wanted, self._read_matrix)

    def _stored(self) -> Mapping[str, StoredTensor]:
        experts = self._experts
        kept = {name: t for name, t in self._matrices.items() if name not in experts.used}
        return kept | {name: weight.stored for name, weight in experts.weights.items()}

    def _empty_biases(self) -> set[str]:
        """Biases that AutoGPTQ adds to every linear: zeros that the architecture does not have."""
        found = set()
        known = self._skeleton.state_dict().keys() if self._assembly.weights else ()
        for name in self._assembly.weights:
            bias = f"{name.removesuffix('.weight')}.bias"
            tensor = self._files.tensors.get(bias)
            if tensor is not None and bias not in known and not self._read_file(tensor).any():
                found.add(bias)
        return found

    def _read(self, stored: StoredTensor) -> torch.Tensor:
        fused = self._experts.weights.get(stored.name)
        return self._read_matrix(stored) if fused is None else fused.read()

    def _read_matrix(self, stored: StoredTensor) -> torch.Tensor:
        """A stored or an unpacked tensor."""
        assembled = self._assembly.weights.get(stored.name)
        return self._read_file(stored) if assembled is None else assembled.read()

    def _blocks(self, stored: StoredTensor) -> QuantizedMatrix | None:
        assembled = self._assembly.weights.get(stored.name)
        if assembled is None or assembled.grid is None:
            return None
        return assembled.grid().blocks()

    def _read_file(self, stored: StoredTensor) -> torch.Tensor:
        """One tensor as the file has it."""
        try:
            with safe_open(stored.file, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(stored.name)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{stored.origin}: not readable ({error}); fetch it again") from error
        return tensor

    def _load_model(self) -> Any:
        from transformers import AutoModelForCausalLM, GenerationConfig

        if self._files.standard and self._packed is None:
            return AutoModelForCausalLM.from_pretrained(
                self.folder, dtype=torch.float32, local_files_only=True
            )
        # transformers does not find files of other names, so it gets the tensors.
        model = super()._load_model()
        if (self.folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(self.folder)
        return model

    def _configured_stops(self) -> Iterable[int]:
        return (*super()._configured_stops(), *configured_stops(self.folder))


def _has_experts(stored: Mapping[str, StoredTensor]) -> bool:
    return any(".experts.0." in name for name in stored)


def _note_of(left_out: tuple[str, ...]) -> str:
    return (
        f"scales of activations or of the cache are not used: {left_out[0]} and "
        f"{len(left_out) - 1} more"
    )

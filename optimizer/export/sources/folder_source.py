"""A model in a Hugging Face folder: config.json and safetensors files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from optimizer.artifacts.bundle import sha256_of
from optimizer.errors import ModelError
from optimizer.export.sources.checkpoint_files import checkpoint_files
from optimizer.export.sources.config_geometry import read_config
from optimizer.export.sources.model_json import (
    check_tokenizer_files,
    configured_stops,
    read_object,
)
from optimizer.export.sources.model_source import ModelSource
from optimizer.export.sources.quantized import refuse_quantized_config
from optimizer.export.sources.safetensors_header import StoredTensor


class FolderSource(ModelSource):
    """See the module. `sha256` covers config.json and the files of weights that are read.

    Raises ModelError for what is no readable checkpoint of plain weights.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = folder.resolve().name
        self._files = checkpoint_files(folder)
        self.notes = self._files.notes
        path = folder / "config.json"
        refuse_quantized_config(read_object(path), path)
        self._config = read_config(path)
        digest = hashlib.sha256(sha256_of(path).encode())
        for weights in self._files.files:
            digest.update(sha256_of(weights).encode())
        self.sha256 = digest.hexdigest()

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

    def _stored(self) -> Mapping[str, StoredTensor]:
        return self._files.tensors

    def _read(self, stored: StoredTensor) -> torch.Tensor:
        try:
            with safe_open(stored.file, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(stored.name)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{stored.origin}: not readable ({error}); fetch it again") from error
        return tensor

    def _load_model(self) -> Any:
        from transformers import AutoModelForCausalLM, GenerationConfig

        if self._files.standard:
            return AutoModelForCausalLM.from_pretrained(
                self.folder, dtype=torch.float32, local_files_only=True
            )
        # transformers does not find files of other names, so it gets the tensors.
        model = type(self._skeleton).from_pretrained(
            None,
            config=self._config,
            dtype=torch.float32,
            state_dict={name: self._read(stored) for name, stored in self._tensors.items()},
        )
        if (self.folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(self.folder)
        return model

    def _configured_stops(self) -> Iterable[int]:
        return (*super()._configured_stops(), *configured_stops(self.folder))

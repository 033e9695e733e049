"""One way to read a model, however it is stored: a config, named tensors and a tokenizer.

A source gives one tensor at a time (a safetensors slice, or a GGUF tensor that it dequantizes).
A build therefore holds no more of the model than the part that it is making.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open

from optimizer.artifacts.bundle import EdgeSettings, sha256_of
from optimizer.artifacts.chat_template import SPECIAL_TOKENS
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.errors import ModelError
from optimizer.export.sources.config_geometry import geometry_of
from optimizer.families import front_family

# Ends of a turn in the chat formats of the supported families. Those in the vocabulary count.
END_OF_TURN_TOKENS: Final = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "</s>")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFiles:
    """What the device needs of the tokenizer: contents of files, and the tokens that end a turn."""

    tokenizer_json: str
    chat_template: str | None
    settings: EdgeSettings


class ModelSource(ABC):
    """A model on this machine. Tensor names are Hugging Face's, with all layers' own indices."""

    id: str
    sha256: str

    @property
    @abstractmethod
    def config(self) -> Any:
        """The transformers config."""

    @property
    @abstractmethod
    def tensor_names(self) -> frozenset[str]:
        """Names of all stored tensors."""

    @abstractmethod
    def read(self, name: str) -> torch.Tensor:
        """One tensor on the CPU, in its stored dtype (GGUF: dequantized to float32).

        Raises ModelError for a name that is not there.
        """

    @abstractmethod
    def load_tokenizer(self) -> Any:
        """The transformers tokenizer."""

    @abstractmethod
    def load_model(self) -> Any:
        """The whole transformers model in float32, for calibration and certification only."""

    @cached_property
    def geometry(self) -> ModelGeometry:
        """The model's numbers. Raises ModelError for a model that is not supported."""
        front_family(self.config)
        return geometry_of(self.config)

    def tokenizer_files(self) -> TokenizerFiles:
        """The tokenizer in files that the edge reads without transformers. Raises ModelError."""
        tokenizer = self.load_tokenizer()
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            path = Path(folder) / "tokenizer.json"
            if not path.is_file():
                raise ModelError(f"{self.id}: its tokenizer has no fast form (tokenizer.json)")
            tokenizer_json = path.read_text(encoding="utf-8")
        template = tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        settings = EdgeSettings(
            stop_token_ids=tuple(sorted(self._stop_token_ids(tokenizer))),
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
            special_tokens=_other_tokens(tokenizer),
        )
        return TokenizerFiles(
            tokenizer_json=tokenizer_json, chat_template=template, settings=settings
        )

    def _stop_token_ids(self, tokenizer: Any) -> set[int]:
        vocabulary = tokenizer.get_vocab()
        stops = {vocabulary[token] for token in END_OF_TURN_TOKENS if token in vocabulary}
        for value in (*self._configured_stops(), tokenizer.eos_token_id):
            if isinstance(value, int):
                stops.add(value)
        return stops

    def _configured_stops(self) -> Iterable[int]:
        value = getattr(self.config, "eos_token_id", None)
        return value if isinstance(value, (list, tuple)) else [] if value is None else [value]


class FolderSource(ModelSource):
    """A Hugging Face folder: config.json and safetensors files. Raises ModelError."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoConfig

        self.folder = folder
        self.id = folder.resolve().name
        weight_files = sorted(folder.glob("*.safetensors"))
        if not weight_files:
            raise ModelError(f"{folder}: no *.safetensors files (pickled weights are not read)")
        try:
            self._config = AutoConfig.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder}: not a readable model ({error})") from error
        self._file_of = {name: path for path in weight_files for name in _names_in(path)}
        digest = hashlib.sha256(sha256_of(folder / "config.json").encode())
        for path in weight_files:
            digest.update(sha256_of(path).encode())
        self.sha256 = digest.hexdigest()

    @property
    def config(self) -> Any:
        """See ModelSource."""
        return self._config

    @property
    def tensor_names(self) -> frozenset[str]:
        """See ModelSource."""
        return frozenset(self._file_of)

    def read(self, name: str) -> torch.Tensor:
        """See ModelSource."""
        if name not in self._file_of:
            raise ModelError(f"{self.folder}: no tensor {name}")
        with safe_open(self._file_of[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def load_tokenizer(self) -> Any:
        """See ModelSource."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder)

    def load_model(self) -> Any:
        """See ModelSource."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)

    def _configured_stops(self) -> Iterable[int]:
        path = self.folder / "generation_config.json"
        stops = list(super()._configured_stops())
        if path.is_file():
            value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
            stops += value if isinstance(value, list) else [] if value is None else [value]
        return stops


class GgufSource(ModelSource):
    """A GGUF file, read with transformers' names and weight transformations. Raises ModelError."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader
        from transformers import AutoConfig

        self.path = path
        self.id = path.stem
        self.sha256 = sha256_of(path)
        try:
            self._config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
            self._tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: not a readable GGUF model ({error})") from error
        # transformers notes here that the file was quantized. What we stage is dequantized.
        if hasattr(self._config, "quantization_config"):
            del self._config.quantization_config
        if not self._config.architectures:
            self._config.architectures = [_causal_class_name(self._config)]

    @property
    def config(self) -> Any:
        """See ModelSource."""
        return self._config

    @property
    def tensor_names(self) -> frozenset[str]:
        """See ModelSource."""
        return frozenset(self._stored_name_of)

    def read(self, name: str) -> torch.Tensor:
        """See ModelSource."""
        from gguf import dequantize

        stored_name = self._stored_name_of.get(name)
        if stored_name is None:
            raise ModelError(f"{self.path}: no tensor {name}")
        stored = self._tensors[stored_name]
        values = dequantize(stored.data, stored.tensor_type)
        processed = self._processor.process(weights=values, name=stored_name)
        return torch.tensor(processed.weights, dtype=torch.float32)

    def load_tokenizer(self) -> Any:
        """See ModelSource."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.path.parent, gguf_file=self.path.name)

    def load_model(self) -> Any:
        """See ModelSource."""
        from transformers import AutoModelForCausalLM

        # Reading GGUF shows a progress bar of its own, which no setting turns off.
        with contextlib.redirect_stderr(io.StringIO()):
            return AutoModelForCausalLM.from_pretrained(
                self.path.parent, gguf_file=self.path.name, dtype=torch.float32
            )

    @cached_property
    def _processor(self) -> Any:
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

        kind = TENSOR_PROCESSORS.get(self._config.model_type, TensorProcessor)
        return kind(config=self._config.to_dict())

    @cached_property
    def _stored_name_of(self) -> dict[str, str]:
        from transformers import AutoModelForCausalLM
        from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(self._config)
        stored_to_name = get_gguf_hf_weights_map(skeleton, self._processor)
        return {name: stored for stored, name in stored_to_name.items() if stored in self._tensors}


def open_source(path: Path) -> ModelSource:
    """Open a Hugging Face folder, a GGUF file, or a folder with exactly one GGUF file.

    Raises ModelError where it is none of these, or is not readable.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # the commands show their own
    if path.is_file() and path.suffix == ".gguf":
        return GgufSource(path)
    if not path.is_dir():
        raise ModelError(f"{path}: no such model folder or GGUF file ('splitpoint model fetch')")
    if (path / "config.json").is_file():
        return FolderSource(path)
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return GgufSource(files[0])
    raise ModelError(f"{path}: holds {len(files)} GGUF files and no config.json: name one")


def _other_tokens(tokenizer: Any) -> dict[str, str]:
    """The tokens that a chat template may insert, beside those of begin and end."""
    found = tokenizer.special_tokens_map
    names = [name for name in SPECIAL_TOKENS if name not in ("bos_token", "eos_token")]
    return {name: found[name] for name in names if isinstance(found.get(name), str)}


def _names_in(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _causal_class_name(config: Any) -> str:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return type(AutoModelForCausalLM.from_config(config)).__name__

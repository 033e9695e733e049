"""One way to read a model, however it is stored: a config, named tensors and a tokenizer.

A source gives one tensor at a time (a safetensors slice, or a GGUF tensor that it dequantizes).
A build therefore holds no more of the model than the part that it is making.

Whatever a source gives is checked here. Its tensors are exactly those of the architecture, with the
same shapes, in plain float types. A value that is not finite is refused when it is read.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch

from optimizer.artifacts.bundle import EdgeSettings
from optimizer.artifacts.chat_template import SPECIAL_TOKENS
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.errors import ModelError
from optimizer.export.sources.config_geometry import geometry_of
from optimizer.export.sources.expected_tensors import compare, expected_tensors, make_skeleton
from optimizer.export.sources.finite_values import check_finite
from optimizer.export.sources.model_json import stop_ids
from optimizer.export.sources.packed.matrix_grid import QuantizedMatrix
from optimizer.export.sources.safetensors_header import StoredTensor
from optimizer.export.sources.tensor_names import EMBEDDING_NAME, HEAD_NAME
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
    format: str  # in words for people
    quantization: str | None = None  # how the files hold the weights, where not as plain floats
    notes: tuple[str, ...] = ()  # one line each, of what was left out

    @cached_property
    def sha256(self) -> str:
        """The hash of all that makes the model. Reads every file once, at the first use."""
        return self._hash()

    @abstractmethod
    def _hash(self) -> str:
        """See `sha256`."""

    @property
    @abstractmethod
    def config(self) -> Any:
        """The transformers config."""

    @property
    @abstractmethod
    def place(self) -> Path:
        """The folder or the file, as messages name it."""

    @abstractmethod
    def _load_tokenizer(self) -> Any:
        """The transformers tokenizer. Raises ModelError where its files are not readable."""

    @abstractmethod
    def _stored(self) -> Mapping[str, StoredTensor]:
        """All tensors of the files, by Hugging Face's names, not yet compared with anything."""

    @abstractmethod
    def _read(self, stored: StoredTensor) -> torch.Tensor:
        """One tensor on the CPU, in its stored dtype (GGUF: dequantized to float32)."""

    def _load_model(self) -> Any:
        """The whole transformers model in float32."""
        return type(self._skeleton).from_pretrained(
            None,
            config=self.config,
            dtype=torch.float32,
            state_dict={name: self._read(stored) for name, stored in self._tensors.items()},
        )

    @cached_property
    def geometry(self) -> ModelGeometry:
        """The model's numbers. Raises ModelError for a model that is not supported, and for files
        that do not hold the tensors of its architecture."""
        front_family(self.config)
        self.check()
        return geometry_of(self.config)

    def check(self) -> None:
        """Compare the files' tensors with the architecture's. Values are not read.

        Raises ModelError for tensors that are missing, quantized, of a wrong shape, or of no use.
        """
        _ = self._tensors

    def stored_tensors(self) -> Mapping[str, StoredTensor]:
        """What the files hold, by Hugging Face's names, without a look at the architecture."""
        return self._stored()

    def stored_types(self) -> dict[str, int]:
        """The types of the files' tensors, in the format's words, with their numbers."""
        return dict(Counter(tensor.dtype for tensor in self._stored().values()).most_common())

    def quantized_matrix(self, name: str) -> QuantizedMatrix | None:
        """The matrix `name` on the grid that the checkpoint holds it in, in blocks of 32 inputs.

        None where the checkpoint has it otherwise, and where its grid does not fit such blocks. Its
        weights are those of `read`, without another rounding. Raises ModelError as `read` does.
        """
        stored = self._tensors.get(name)
        if stored is None:
            raise ModelError(f"{self.place}: no tensor {name}")
        matrix = self._blocks(stored)
        if matrix is not None:
            check_finite(matrix.scales, stored.origin)
        return matrix

    def _blocks(self, stored: StoredTensor) -> QuantizedMatrix | None:
        """See `quantized_matrix`."""
        return None

    @property
    def tensor_names(self) -> frozenset[str]:
        """Names of the tensors that a build can read: the architecture's. Raises as `check`."""
        return frozenset(self._tensors)

    def stored(self, name: str) -> StoredTensor:
        """Where a tensor lies: file, name in it, type and shape. Raises as `check`."""
        return self._tensors[name]

    def read(self, name: str, *, fits: torch.dtype = torch.float32) -> torch.Tensor:
        """One tensor on the CPU, in its stored dtype (GGUF: dequantized to float32).

        fits: the type that its values will be converted to. Raises ModelError for a name that is
        not there, and for values that are not finite, or not in that type.
        """
        if name not in self._tensors:
            raise ModelError(f"{self.place}: no tensor {name}")
        tensor = self._read(self._tensors[name])
        check_finite(tensor, self._tensors[name].origin, fits=fits)
        if name == HEAD_NAME and self.config.tie_word_embeddings:
            self._check_tied_head(tensor)
        return tensor

    def load_tokenizer(self) -> Any:
        """The transformers tokenizer, read once: callers share it and must not change it.

        Raises ModelError where its files are not readable.
        """
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> Any:
        return self._load_tokenizer()

    def load_model(self) -> Any:
        """The whole transformers model in float32, for calibration and certification only.

        Raises ModelError as `check` and `read` do.
        """
        if HEAD_NAME in self.tensor_names:
            self.read(HEAD_NAME)
        model = self._load_model()
        for name, parameter in model.named_parameters():
            stored = self._tensors.get(name)
            check_finite(
                parameter.detach(), f"{self.place}: {name}" if stored is None else stored.origin
            )
        return model

    @cached_property
    def _skeleton(self) -> Any:
        return make_skeleton(self.config, str(self.place))

    @cached_property
    def _tensors(self) -> dict[str, StoredTensor]:
        front_family(self.config)
        return compare(self._stored(), expected_tensors(self._skeleton), str(self.place))

    def _check_tied_head(self, head: torch.Tensor) -> None:
        """ModelError for a stored head that differs from the embedding it should be."""
        if not torch.equal(head, self._read(self._tensors[EMBEDDING_NAME])):
            raise ModelError(
                f"{self._tensors[HEAD_NAME].origin} differs from {EMBEDDING_NAME}, though the "
                "config says tie_word_embeddings; correct the config, or remove the head"
            )

    def tokenizer_files(self) -> TokenizerFiles:
        """The tokenizer in files that the edge reads without transformers. Raises ModelError."""
        tokenizer = self.load_tokenizer()
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            path = Path(folder) / "tokenizer.json"
            if not path.is_file():
                raise ModelError(
                    f"{self.place}: its tokenizer has no fast form (tokenizer.json), which the "
                    "device needs; take a copy of the model that has one, or convert it with "
                    "transformers.convert_slow_tokenizer"
                )
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
        stops.update(self._configured_stops())
        if isinstance(tokenizer.eos_token_id, int):
            stops.add(tokenizer.eos_token_id)
        return stops

    def _configured_stops(self) -> Iterable[int]:
        """Ids that the model's files name as ends. Raises ModelError for what is no id."""
        return stop_ids(
            getattr(self.config, "eos_token_id", None), f"{self.place}: the config's eos_token_id"
        )


def open_source(path: Path, adapter: Path | None = None) -> ModelSource:
    """Open a model, with the LoRA adapter of the folder `adapter` merged into it as it is read.

    Raises ModelError where a file is not readable, and for an adapter of another model.
    """
    if adapter is None:
        return _open_model(path)
    from optimizer.export.sources.adapted_source import AdaptedSource
    from optimizer.export.sources.adapter import Adapter

    return AdaptedSource(_open_model(path), Adapter(adapter))


def _open_model(path: Path) -> ModelSource:
    """Open a Hugging Face folder, a GGUF file, or a folder with exactly one model in GGUF.

    Raises ModelError where it is none of these, or is not readable.
    """
    from transformers.utils import logging as transformers_logging

    from optimizer.export.sources.checkpoint_files import refuse_adapter
    from optimizer.export.sources.folder_source import FolderSource
    from optimizer.export.sources.gguf_files import gguf_models
    from optimizer.export.sources.gguf_source import GgufSource

    transformers_logging.disable_progress_bar()  # the commands show their own
    if path.is_file() and path.suffix == ".gguf":
        return GgufSource(path)
    if not path.is_dir():
        raise ModelError(f"{path}: no such model folder or GGUF file ('splitpoint model fetch')")
    refuse_adapter(path)
    if (path / "config.json").is_file():
        return FolderSource(path)
    files = gguf_models(list(path.glob("*.gguf")))
    if len(files) == 1:
        return GgufSource(files[0])
    raise ModelError(f"{path}: holds {len(files)} GGUF models and no config.json: name one")


def _other_tokens(tokenizer: Any) -> dict[str, str]:
    """The tokens that a chat template may insert, beside those of begin and end."""
    found = tokenizer.special_tokens_map
    names = [name for name in SPECIAL_TOKENS if name not in ("bos_token", "eos_token")]
    return {name: found[name] for name in names if isinstance(found.get(name), str)}

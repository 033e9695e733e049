"""A model in one GGUF file, read with transformers' names and weight transformations."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from optimizer.artifacts.bundle import sha256_of
from optimizer.errors import ModelError
from optimizer.export.sources.expected_tensors import make_skeleton
from optimizer.export.sources.model_source import ModelSource
from optimizer.export.sources.safetensors_header import StoredTensor
from optimizer.export.sources.weight_file import check_file

_FACTORS_NAME: Final = "rope_freqs.weight"  # divisors of the rotary frequencies
_READ_AS: Final = "F32"  # every type that can be dequantized


class GgufSource(ModelSource):
    """See the module. `sha256` is the file's. Raises ModelError for what is no readable model."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader
        from transformers import AutoConfig

        self.path = path
        self.id = path.stem
        check_file(path)
        try:
            self._reader = GGUFReader(path)
            self._in_file = {tensor.name: tensor for tensor in self._reader.tensors}
            _check_kind(path, self._reader)
            self._config = AutoConfig.from_pretrained(
                path.parent, gguf_file=path.name, local_files_only=True
            )
        except ModelError:
            raise
        except Exception as error:  # a broken file makes the reader raise nearly anything
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise ModelError(
                f"{path}: not a readable GGUF model ({reason}); it may be cut off, fetch it again"
            ) from error
        # transformers notes here that the file was quantized. What we stage is dequantized.
        if hasattr(self._config, "quantization_config"):
            del self._config.quantization_config
        if not self._config.architectures:
            self._config.architectures = [type(make_skeleton(self._config, str(path))).__name__]
        self.sha256 = sha256_of(path)

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
            return AutoTokenizer.from_pretrained(
                self.path.parent, gguf_file=self.path.name, local_files_only=True
            )
        except Exception as error:  # as above
            reason = " ".join(str(error).split())[:160]
            raise ModelError(f"{self.path}: its tokenizer is not readable ({reason})") from error

    def _stored(self) -> Mapping[str, StoredTensor]:
        self._check_positions()
        for name, tensor in self._in_file.items():
            if not _is_readable(tensor.tensor_type):
                raise ModelError(
                    f"{self.path}: {name} has type {tensor.tensor_type.name}, which is not read; "
                    "use another quantization of the model (Q8_0, Q4_K_M, F16)"
                )
        name_of = self._name_of
        return {
            name_of.get(stored, stored): StoredTensor(
                file=self.path,
                name=stored,
                dtype=_READ_AS,
                shape=tuple(int(size) for size in reversed(tensor.shape)),
            )
            for stored, tensor in self._in_file.items()
            if stored != _FACTORS_NAME
        }

    def _read(self, stored: StoredTensor) -> torch.Tensor:
        from gguf import dequantize

        tensor = self._in_file[stored.name]
        values = dequantize(tensor.data, tensor.tensor_type)
        processed = self._processor.process(weights=values, name=stored.name)
        return torch.tensor(processed.weights, dtype=torch.float32)

    def _load_model(self) -> Any:
        from transformers import AutoModelForCausalLM

        # Reading GGUF shows a progress bar of its own, which no setting turns off.
        with contextlib.redirect_stderr(io.StringIO()):
            return AutoModelForCausalLM.from_pretrained(
                self.path.parent, gguf_file=self.path.name, dtype=torch.float32
            )

    def _check_positions(self) -> None:
        """ModelError for position scaling, which transformers leaves out when it reads GGUF."""
        kind = _field(self._reader, "general.architecture")
        scaling = _field(self._reader, f"{kind}.rope.scaling.type")
        factor = _field(self._reader, f"{kind}.rope.scaling.factor")
        factors = self._in_file.get(_FACTORS_NAME)
        rotated = _field(self._reader, f"{kind}.rope.dimension_count")
        head_dim = getattr(self._config, "head_dim", None) or (
            self._config.hidden_size // self._config.num_attention_heads
        )
        if rotated not in (None, head_dim):
            raise ModelError(
                f"{self.path}: rotates {rotated} of {head_dim} channels of a head, which is not "
                "read from GGUF; use the model's safetensors folder"
            )
        is_scaled = (scaling not in (None, "none") and factor not in (None, 1.0)) or (
            factors is not None and not np.all(np.asarray(factors.data) == 1)
        )
        if is_scaled:
            raise ModelError(
                f"{self.path}: has scaled positions ({scaling or _FACTORS_NAME}), which are not "
                "read from GGUF; use the model's safetensors folder"
            )

    @cached_property
    def _processor(self) -> Any:
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

        kind = TENSOR_PROCESSORS.get(self._config.model_type, TensorProcessor)
        return kind(config=self._config.to_dict())

    @cached_property
    def _name_of(self) -> dict[str, str]:
        """Hugging Face's name of each name in the file."""
        from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

        names: dict[str, str] = get_gguf_hf_weights_map(self._skeleton, self._processor)
        return names


def _check_kind(path: Path, reader: Any) -> None:
    """ModelError for an adapter, and for one part of a model in several files."""
    if _field(reader, "general.type") == "adapter":
        raise ModelError(f"{path}: an adapter, not a model; merge it into its model first")
    parts = _field(reader, "split.count")
    if parts is not None and int(parts) > 1:
        raise ModelError(
            f"{path}: one of {int(parts)} parts; join them first (llama-gguf-split --merge)"
        )


def _field(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _is_readable(kind: Any) -> bool:
    """Whether gguf can dequantize tensors of this type."""
    from gguf import GGML_QUANT_SIZES, dequantize

    try:
        with np.errstate(all="ignore"):
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True

"""GGUF files: one file, or the parts that llama-gguf-split makes of one.

Parts are called NAME-00001-of-0000N.gguf. The first holds the facts (metadata), and any of them may
hold a tensor.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from optimizer.errors import ModelError
from optimizer.export.sources.packed.matrix_grid import BLOCK_SIZE, MatrixGrid, even_groups
from optimizer.export.sources.weight_file import check_file

_PART: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

# Types whose weights are step * (code - middle), in blocks of 32.
_GRID_BITS: Final = {"Q4_0": 4, "Q8_0": 8}


def gguf_models(paths: Sequence[Path]) -> list[Path]:
    """Of GGUF files in one folder: one path a model, the first part of a split one."""
    seen: dict[str, Path] = {}
    for path in sorted(paths):
        part = _PART.fullmatch(path.name)
        seen.setdefault(f"{part['stem']}-of-{part['count']}" if part else path.name, path)
    return list(seen.values())


def gguf_parts(path: Path) -> tuple[Path, ...]:
    """All parts of the model that `path` is a part of, in order; a whole file alone.

    Raises ModelError where a part is missing.
    """
    part = _PART.fullmatch(path.name)
    if part is None:
        return (path,)
    count = int(part["count"])
    names = [f"{part['stem']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    parts = tuple(path.with_name(name) for name in names)
    missing = [found.name for found in parts if not found.is_file()]
    if missing:
        raise ModelError(
            f"{path}: {len(missing)} of its {count} parts are missing ({missing[0]}); "
            "fetch the model again"
        )
    return parts


class GgufFiles:
    """The facts and tensors of a model in GGUF. Values are mapped, not read.

    Raises ModelError for a part that is missing, broken or of another model.
    """

    def __init__(self, path: Path) -> None:
        self.paths = gguf_parts(path)
        self.path = self.paths[0]
        self.tensors: dict[str, Any] = {}
        self.file_of: dict[str, Path] = {}
        for number, part in enumerate(self.paths):
            reader = _open(part)
            if number == 0:
                self._facts = reader
                self._check_kind()
            elif int(_fact(reader, "split.no") or 0) != number:
                raise ModelError(f"{part}: not part {number + 1} of a model; fetch it again")
            for tensor in reader.tensors:
                if tensor.name in self.tensors:
                    raise ModelError(
                        f"{part}: {tensor.name} is in {self.file_of[tensor.name].name} too; "
                        "the parts are of different models"
                    )
                self.tensors[tensor.name] = tensor
                self.file_of[tensor.name] = part
        expected = self.fact("split.tensors.count")
        if expected is not None and int(expected) != len(self.tensors):
            raise ModelError(
                f"{self.path}: its parts hold {len(self.tensors)} tensors of {int(expected)}; "
                "they are of different models"
            )

    def fact(self, name: str) -> Any:
        """The value of one key of the metadata; None where it is not there."""
        return _fact(self._facts, name)

    def length(self, name: str) -> int:
        """How many entries a list of the metadata has; 0 where it is not there."""
        field = self._facts.get_field(name)
        return 0 if field is None else len(field.data)

    @cached_property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture, such as "gemma3"."""
        return str(self.fact("general.architecture"))

    def own_fact(self, name: str) -> Any:
        """The value of the architecture's key `name`, such as "rope.freq_base"."""
        return self.fact(f"{self.architecture}.{name}")

    def values(self, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """One tensor, dequantized to float32."""
        from gguf import dequantize

        tensor = self.tensors[name]
        values = dequantize(tensor.data, tensor.tensor_type)
        return np.asarray(values, dtype=np.float32)

    def grid(self, name: str) -> MatrixGrid | None:
        """The matrix [N, K] as codes and scales, where its type has no more than these: Q4_0, Q8_0.

        The others have offsets that are no multiple of the step, or steps of several levels.
        """
        tensor = self.tensors[name]
        if tensor.tensor_type.name not in _GRID_BITS or len(tensor.shape) != 2:
            return None
        inputs, outputs = (int(size) for size in tensor.shape)
        bits = _GRID_BITS[tensor.tensor_type.name]
        blocks = np.array(tensor.data).view(np.uint8).reshape(outputs, inputs // BLOCK_SIZE, -1)
        steps, packed = blocks[..., :2].copy().view(np.float16)[..., 0], blocks[..., 2:]
        # 8 bits: int8, counted from 0 on. 4 bits: a block's first half is in the lower half bytes.
        halves = (packed & 0x0F, packed >> 4)
        codes = packed ^ 0x80 if bits == 8 else np.concatenate(halves, axis=-1)
        return MatrixGrid(
            bits=bits,
            codes=torch.from_numpy(codes.reshape(outputs, inputs).copy()),
            scales=torch.from_numpy(steps.astype(np.float32)),
            zeros=torch.full((outputs, inputs // BLOCK_SIZE), 1 << (bits - 1), dtype=torch.int16),
            group_of=even_groups(inputs, inputs // BLOCK_SIZE),
        )

    def _check_kind(self) -> None:
        """ModelError for an adapter, and for one part of a model under another name."""
        if self.fact("general.type") == "adapter":
            raise ModelError(f"{self.path}: an adapter, not a model; merge it into its model first")
        count = int(self.fact("split.count") or 1)
        if count != len(self.paths) and count > 1:
            raise ModelError(
                f"{self.path}: one of {count} parts, and its name is not NAME-00001-of-"
                f"{count:05}.gguf; give the parts their names back, or join them "
                "(llama-gguf-split --merge)"
            )


def is_readable(kind: Any) -> bool:
    """Whether gguf can dequantize tensors of this type."""
    from gguf import GGML_QUANT_SIZES, dequantize

    try:
        with np.errstate(all="ignore"):
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


@functools.cache
def _reader_class() -> Any:
    """gguf's reader over a plain array: a memmap's own slices make a long token list ten times
    slower to read."""
    from gguf import GGUFReader

    class Reader(GGUFReader):
        """See above."""

        @property
        def data(self) -> Any:
            return self._data

        @data.setter
        def data(self, mapped: Any) -> None:
            self._data = np.asarray(mapped)

    return Reader


@contextmanager
def read_as_plain_array() -> Iterator[None]:
    """While the block lasts, other code that opens a GGUF file uses the reader of this module.

    transformers reads a whole file's facts to find a tokenizer's class: 0.3 s in place of 2.7 s for
    49,152 tokens. The facts are the same.
    """
    import gguf

    before = gguf.GGUFReader
    vars(gguf)["GGUFReader"] = _reader_class()
    try:
        yield
    finally:
        vars(gguf)["GGUFReader"] = before


def _open(path: Path) -> Any:
    check_file(path)
    try:
        return _reader_class()(path)
    except Exception as error:  # a broken file makes the reader raise nearly anything
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ModelError(
            f"{path}: not a readable GGUF model ({reason}); it may be cut off, fetch it again"
        ) from error


def _fact(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()

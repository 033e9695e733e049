"""What a safetensors file says that it holds: names, types and shapes, without any values.

The format: 8 bytes with the header's length N (little-endian), N bytes of JSON, then the values.
Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hwprofiles.errors import ProfileError
from hwprofiles.schema.strict_json import parse_json
from optimizer.errors import ModelError
from optimizer.export.sources.weight_file import check_file

_LENGTH_BYTES: Final = 8
_MAX_HEADER: Final = 100_000_000  # as the format's own reader
_MAX_DIMENSIONS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor of a file. name: as the file has it. dtype: the file format's own word.

    num_bytes: what its values take in the file.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int = 0

    @property
    def origin(self) -> str:
        """File and tensor, as messages name them."""
        return f"{self.file}: {self.name}"


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name.

    Raises ModelError, in one line with the cure, for a file that is missing, empty, cut off, a
    Git-LFS pointer, or of another format.
    """
    check_file(path)
    num_bytes = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if num_bytes < _LENGTH_BYTES or not 2 <= length <= _MAX_HEADER:
            raise ModelError(f"{path}: not a safetensors file; fetch it again")
        if _LENGTH_BYTES + length > num_bytes:
            raise _cut(path, num_bytes, _LENGTH_BYTES + length)
        header = stream.read(length)
    try:
        entries: Any = parse_json(header, source=str(path))
        entries.pop("__metadata__", None)
        tensors = {name: _tensor(path, name, entry) for name, entry in entries.items()}
        ends = [int(entry["data_offsets"][1]) for entry in entries.values()]
    except (ProfileError, AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ModelError(f"{path}: not a safetensors file ({reason}); fetch it again") from error
    expected = _LENGTH_BYTES + length + max(ends, default=0)
    if num_bytes < expected:
        raise _cut(path, num_bytes, expected)
    return tensors


def merged(headers: Mapping[Path, Mapping[str, StoredTensor]]) -> dict[str, StoredTensor]:
    """The tensors of several files together. Raises ModelError for a name in two of them."""
    tensors: dict[str, StoredTensor] = {}
    for path, header in headers.items():
        for name, tensor in header.items():
            if name in tensors:
                raise ModelError(
                    f"{path}: {name} is in {tensors[name].file.name} too; "
                    "keep the files of one checkpoint only"
                )
            tensors[name] = tensor
    return tensors


def _tensor(path: Path, name: str, entry: dict[str, Any]) -> StoredTensor:
    shape = tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    sizes = (*shape, begin, end)
    if any(type(size) is not int or size < 0 for size in sizes) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"{name} has no proper shape or place")
    if end < begin or (math.prod(shape) and end == begin):
        raise ValueError(f"{name} has no room for its values")
    return StoredTensor(
        file=path, name=name, dtype=str(entry["dtype"]), shape=shape, num_bytes=end - begin
    )


def _cut(path: Path, num_bytes: int, expected: int) -> ModelError:
    return ModelError(f"{path}: cut off, {num_bytes} bytes of at least {expected}; fetch it again")

"""The tables file of a ladder: how its header and arrays lie in the file.

Layout: b"SPCODEC2"; length of the header (uint32 LE); header, JSON; arrays, little-endian, each at
its offset from the end of the header. The header names the levels and lists the arrays with dtype
and shape. Both sides must agree on the SHA-256 of the whole file. The file is mapped, so the token
predictions (a byte per token and channel) cost memory only where used. `splitpoint build` writes
it; `codec.ladder` makes coders of it.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from codec.arrays import Arrays
from codec.errors import TablesError

_MAGIC: Final = b"SPCODEC2"
_EARLIER: Final = b"SPCODEC1"
_MAX_HEADER_BYTES: Final = 1 << 20
_MAX_FILE_BYTES: Final = 4 << 30
_DTYPES: Final = {
    "<f4": np.float32,
    "<u2": np.uint16,
    "|u1": np.uint8,
    "|i1": np.int8,
    "<i4": np.int32,
}


def write_tables(path: Path, header: dict[str, Any], arrays: Arrays) -> str:
    """Write the file; `header` gets its "arrays" key here. Returns the SHA-256 in hex."""
    listing, blobs, at = {}, [], 0
    for name, array in arrays.items():
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        if little.dtype.str not in _DTYPES:
            raise TablesError(f"array {name} of dtype {array.dtype} has no place in a tables file")
        listing[name] = {"dtype": little.dtype.str, "shape": list(array.shape), "offset": at}
        blobs.append(little.tobytes())
        at += len(blobs[-1])
    text = json.dumps({**header, "arrays": listing}, sort_keys=True).encode()
    data = b"".join((_MAGIC, len(text).to_bytes(4, "little"), text, *blobs))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def read_tables(path: Path) -> tuple[dict[str, Any], Arrays, str]:
    """Header, arrays and SHA-256 of a tables file. Raises TablesError."""
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise TablesError(f"{path}: larger than any codec tables file")
        mapped = np.memmap(path, dtype=np.uint8, mode="r")
    except OSError as error:
        raise TablesError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # an empty file cannot be mapped
        raise TablesError(f"{path}: not a codec tables file") from error
    data = mapped.data
    if bytes(data[:8]) == _EARLIER:
        raise TablesError(f"{path}: tables of an earlier format; run 'splitpoint build' again")
    if len(data) < 12 or bytes(data[:8]) != _MAGIC:
        raise TablesError(f"{path}: not a codec tables file")
    size = int.from_bytes(data[8:12], "little")
    if size > min(_MAX_HEADER_BYTES, len(data) - 12):
        raise TablesError(f"{path}: header of {size} bytes does not fit")
    try:
        header = json.loads(
            bytes(data[12 : 12 + size]),
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_constant=_finite,
        )
        body = data[12 + size :]
        arrays = {str(name): _array(body, entry) for name, entry in header["arrays"].items()}
    except (
        ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError
    ) as error:  # fmt: skip
        raise TablesError(f"{path}: damaged header: {error}") from error
    return header, arrays, _sha256_of(path)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of the header. The codec imports no other room, so it has checks of its own."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key is written twice")
    return values


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is no number")
    return value


def _sha256_of(path: Path) -> str:
    """Read in blocks, not through the mapping, whose pages would all become resident."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _array(body: memoryview, entry: dict[str, Any]) -> npt.NDArray[Any]:
    dtype = _DTYPES[entry["dtype"]]
    shape = [int(n) for n in entry["shape"]]
    offset = int(entry["offset"])
    count = math.prod(shape)
    size = np.dtype(dtype).itemsize
    if min(shape, default=0) < 0 or offset < 0 or offset + count * size > len(body):
        raise ValueError("array outside the file")
    raw = np.frombuffer(body, np.dtype(dtype).newbyteorder("<"), count=count, offset=offset)
    # Large byte tables stay in the file's pages; a session touches a row of them per token.
    array = (raw if count > 1 << 20 and dtype is np.int8 else raw.astype(dtype)).reshape(shape)
    if array.dtype == np.float32 and not np.isfinite(array).all():
        raise ValueError("array with NaN or infinity")
    return array

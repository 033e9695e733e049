"""Which other files an ONNX model takes its weights from, read before ONNX Runtime opens it.

A tensor of a model may lie in another file, at any path that the model names ("external data").
This reads just those paths, without the `onnx` package, which a device does not have. The field
numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3, in the encoding of
https://protobuf.dev/programming-guides/encoding. The file is mapped: weights are stepped over.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from optimizer.errors import BundleError

MAX_DEPTH: Final = 100  # protobuf's own limit
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_VARINT_BYTES: Final = 10
_LOCATION: Final = "location"

# By message: which fields hold messages, and of which type.
_MESSAGES: Final[Mapping[str, Mapping[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_KEY, _VALUE = 1, 2  # fields of an entry


def external_files(path: Path) -> frozenset[str]:
    """The locations of external data, as the model writes them.

    Raises BundleError for a file that is no ONNX model or nests too deeply.
    """
    try:
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return frozenset(_locations(data, 0, len(data), "model", MAX_DEPTH))
    except (ValueError, OSError) as error:  # an empty file cannot be mapped
        raise BundleError(f"{path}: not an ONNX model ({error})") from error


def _locations(data: mmap.mmap, start: int, end: int, kind: str, depth: int) -> Iterator[str]:
    """Locations within the message of type `kind` in `data[start:end]`."""
    if depth == 0:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if kind == "entry":
        yield from _location_of_entry(data, start, end)
        return
    for field, begin, stop in _fields(data, start, end):
        child = _MESSAGES[kind].get(field)
        if child is not None:
            yield from _locations(data, begin, stop, child, depth - 1)


def _location_of_entry(data: mmap.mmap, start: int, end: int) -> Iterator[str]:
    """Every value of an entry whose key may be "location"; a field may be written twice."""
    keys, values = set(), []
    for field, begin, stop in _fields(data, start, end):
        if field == _KEY:
            keys.add(data[begin:stop])
        elif field == _VALUE:
            values.append(data[begin:stop].decode())
    if _LOCATION.encode() in keys:
        yield from values or [""]


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, begin, end) of each length-delimited field; the others are stepped over."""
    at = start
    while at < end:
        tag, at = _varint(data, at, end)
        field, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            _, at = _varint(data, at, end)
        elif wire_type == _FIXED_64:
            at += 8
        elif wire_type == _FIXED_32:
            at += 4
        elif wire_type == _BYTES:
            size, at = _varint(data, at, end)
            if size > end - at:
                raise ValueError("a field ends beyond its message")
            yield field, at, at + size
            at += size
        else:
            raise ValueError(f"wire type {wire_type} is not known")
    if at != end:
        raise ValueError("a field ends beyond its message")


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """The number at `at`, and where it ends."""
    value = 0
    for place in range(_VARINT_BYTES):
        if at + place >= end:
            raise ValueError("the file is cut off")
        byte = data[at + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError("a number of more than ten bytes")

"""ONNX models by hand: just the fields that say where weights lie."""

from __future__ import annotations


def field(number: int, body: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def model_with_external(location: str, *, nested: bool = False) -> bytes:
    """A model with one tensor in another file; nested: in the body of a node's branch."""
    entry = field(1, b"location") + field(2, location.encode())
    tensor = field(8, b"weight") + field(13, entry) + _varint(14 << 3) + _varint(1)
    graph = field(5, tensor)
    if nested:
        graph = field(1, field(5, field(6, graph)))
    return _varint(1 << 3) + _varint(8) + field(7, graph)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])

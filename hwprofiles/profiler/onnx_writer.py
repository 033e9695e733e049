"""Write small ONNX graphs without the onnx package.

A device has onnxruntime but not onnx, and the profiler needs graphs in many shapes. An ONNX
model is one protobuf message, and the part of it used here (nodes, attributes, constant tensors,
typed inputs and outputs) takes the few functions below. Field numbers: onnx/onnx.proto.

It is written by hand, not through generated protobuf classes, for two reasons. Weights are
hundreds of megabytes, and protobuf would hold each twice more on a small device. And an install
that only builds bundles has onnxruntime without a protobuf new enough for generated code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

IR_VERSION = 10
OPSETS = (("", 21), ("com.microsoft", 1))
FLOAT, UINT8, INT8, INT32, INT64, FLOAT16 = 1, 2, 3, 6, 7, 10
_ELEMENT_TYPES = {
    "float32": FLOAT,
    "uint8": UINT8,
    "int8": INT8,
    "int32": INT32,
    "int64": INT64,
    "float16": FLOAT16,
}
_ATTRIBUTE_FLOAT, _ATTRIBUTE_INT, _ATTRIBUTE_STRING = 1, 2, 3

Attribute = int | float | str
Dimension = int | str


@dataclass(slots=True)
class GraphWriter:
    """Collects nodes and tensors, then gives the model as bytes for `InferenceSession`."""

    _nodes: list[bytes] = field(default_factory=list)
    _constants: list[tuple[bytes, bytes]] = field(default_factory=list)
    _inputs: list[bytes] = field(default_factory=list)
    _outputs: list[bytes] = field(default_factory=list)

    def node(
        self,
        op_type: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        domain: str = "",
        **attributes: Attribute,
    ) -> None:
        """Add one operator; an empty input name leaves that optional input out."""
        body = [_text(1, name) for name in inputs] + [_text(2, name) for name in outputs]
        body += [_text(3, f"{op_type}_{len(self._nodes)}"), _text(4, op_type)]
        body += [_bytes(5, _attribute(name, value)) for name, value in attributes.items()]
        body.append(_text(7, domain))
        self._nodes.append(b"".join(body))

    def constant(self, name: str, value: NDArray[np.generic]) -> None:
        """Add a constant tensor (an initializer: kernels may pre-pack it)."""
        shape = b"".join(_number(1, size) for size in value.shape)
        kind = _number(2, _ELEMENT_TYPES[value.dtype.name])
        data = np.ascontiguousarray(value).tobytes()
        about = shape + kind + _text(8, name) + _header(9, len(data))
        self._constants.append((_header(5, len(about) + len(data)) + about, data))

    def input(self, name: str, element_type: int, shape: Sequence[Dimension]) -> None:
        """Declare a graph input; a dimension given as text is free."""
        self._inputs.append(_value_info(name, element_type, shape))

    def output(self, name: str, element_type: int, shape: Sequence[Dimension]) -> None:
        """Declare a graph output; a dimension given as text is free."""
        self._outputs.append(_value_info(name, element_type, shape))

    def model(self) -> bytes:
        """The whole model, serialized."""
        # Weights are hundreds of megabytes: each is copied once, into the result.
        graph = [_bytes(1, node) for node in self._nodes] + [_text(2, "probe")]
        graph += [part for constant in self._constants for part in constant]
        graph += [_bytes(11, info) for info in self._inputs]
        graph += [_bytes(12, info) for info in self._outputs]
        size = sum(len(part) for part in graph)
        opsets = [_bytes(8, _text(1, domain) + _number(2, v)) for domain, v in OPSETS]
        head = [_number(1, IR_VERSION), _text(2, "splitpoint"), _header(7, size)]
        return b"".join([*head, *graph, *opsets])


def _attribute(name: str, value: Attribute) -> bytes:
    if isinstance(value, str):
        return _text(1, name) + _text(4, value) + _number(20, _ATTRIBUTE_STRING)
    if isinstance(value, float):
        raw = _varint(2 << 3 | 5) + np.float32(value).tobytes()
        return _text(1, name) + raw + _number(20, _ATTRIBUTE_FLOAT)
    return _text(1, name) + _number(3, value) + _number(20, _ATTRIBUTE_INT)


def _value_info(name: str, element_type: int, shape: Sequence[Dimension]) -> bytes:
    dims = [_text(2, size) if isinstance(size, str) else _number(1, size) for size in shape]
    tensor = _number(1, element_type) + _bytes(2, b"".join(_bytes(1, dim) for dim in dims))
    return _text(1, name) + _bytes(2, _bytes(1, tensor))


def _varint(value: int) -> bytes:
    """Base-128, least significant group first; negatives as 64-bit two's complement."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _header(number: int, size: int) -> bytes:
    return _varint(number << 3 | 2) + _varint(size)


def _bytes(number: int, value: bytes) -> bytes:
    return _header(number, len(value)) + value


def _text(number: int, value: str) -> bytes:
    return _bytes(number, value.encode())

"""Fronts of mixed precision: some layers' matrices at 8 bits in a graph of 4 bits.

The exporter gives every layer the same bits. Two exports of the same front differ in their
MatMulNBits nodes and nothing else, so a layer changes its precision by taking the nodes, and the
codes and scales they read, from the other graph.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

import onnx

from optimizer.errors import BuildError

MATRIX_OP: Final = "MatMulNBits"
NODE_LAYER: Final = re.compile(r"/layers\.(\d+)/")  # in node names
NODE_BITS: Final = re.compile(r"_Q\d+$")
TAKEN_SUFFIX: Final = ".taken"


def take_layers(model: onnx.ModelProto, other: onnx.ModelProto, layers: Collection[int]) -> None:
    """Replace in `model` the matrices of `layers` by those of `other`, another export of it.

    Raises BuildError when the graphs do not have the same matrices.
    """
    donors = {_key(node): node for node in other.graph.node if _layer_of(node) in layers}
    weights = {tensor.name: tensor for tensor in other.graph.initializer}
    nodes = {_key(node): node for node in model.graph.node if _layer_of(node) in layers}
    if nodes.keys() != donors.keys() or {_layer_of(node) for node in nodes.values()} != set(layers):
        raise BuildError("the exporter's graphs at 4 and 8 bits do not have the same matrices")
    dropped: set[str] = set()
    for key, node in nodes.items():
        donor = donors[key]
        dropped.update(name for name in node.input[1:] if name)
        taken = [name for name in donor.input[1:] if name]
        del node.input[1:]
        node.input.extend(f"{name}{TAKEN_SUFFIX}" for name in taken)
        del node.attribute[:]
        node.attribute.extend(donor.attribute)
        node.name = donor.name
        for name in taken:
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(weights[name])
            tensor.name = f"{name}{TAKEN_SUFFIX}"
    read = {name for node in model.graph.node for name in node.input}
    kept = [
        tensor
        for tensor in model.graph.initializer
        if tensor.name not in dropped or tensor.name in read
    ]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _layer_of(node: onnx.NodeProto) -> int | None:
    match = NODE_LAYER.search(node.name)
    return int(match.group(1)) if match and node.op_type == MATRIX_OP else None


def _key(node: onnx.NodeProto) -> str:
    return NODE_BITS.sub("", node.name)

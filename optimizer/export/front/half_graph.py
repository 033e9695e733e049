"""A second graph of a 16-bit front, whose products are computed in 16 bits.

The first one widens each matrix to 32 bits at load. This one reads the same file of weights. Rows
are narrowed before a product and widened after it, so norms, the residual stream and attention are
as they were: only what a matrix multiplies, and each product, must fit 16 bits. Experts stay as
they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx
from onnx import TensorProto, helper

NARROWED = ".float16"


def in_halves(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with 16-bit products wherever a product's matrix is widened. Weights are shared:
    `model` must have been loaded without those that lie in a file beside it."""
    matrices = _widened_matrices(model.graph)
    halves = onnx.ModelProto()
    halves.CopyFrom(model)
    del halves.graph.node[:]
    narrowed: set[str] = set()
    for node in model.graph.node:
        if _matrix_of(node, matrices) is not None:
            halves.graph.node.extend(_product(node, matrices, narrowed))
        elif not (node.op_type == "Cast" and node.output[0] in matrices):
            halves.graph.node.append(node)
    return halves


def _widened_matrices(graph: onnx.GraphProto) -> dict[str, str]:
    """The stored matrix of each widened one that only products read, by the widened one's name."""
    stored = {each.name for each in graph.initializer if each.data_type == TensorProto.FLOAT16}
    widened = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Cast" and node.input[0] in stored
    }
    uses = Counter(name for node in graph.node for name in node.input)
    products = Counter(
        node.input[1] for node in graph.node if node.op_type == "MatMul" and len(node.input) == 2
    )
    return {wide: held for wide, held in widened.items() if uses[wide] == products[wide] > 0}


def _matrix_of(node: onnx.NodeProto, matrices: dict[str, str]) -> str | None:
    return matrices.get(node.input[1]) if node.op_type == "MatMul" else None


def _product(
    node: onnx.NodeProto, matrices: dict[str, str], narrowed: set[str]
) -> Iterator[onnx.NodeProto]:
    """The nodes of one product. narrowed: rows that are there in 16 bits already."""
    rows, matrix = node.input
    half_rows, half = rows + NARROWED, node.output[0] + NARROWED
    if rows not in narrowed:
        narrowed.add(rows)
        yield helper.make_node(
            "Cast", [rows], [half_rows], name=f"{rows}/Narrow", to=TensorProto.FLOAT16
        )
    yield helper.make_node("MatMul", [half_rows, matrices[matrix]], [half], name=node.name)
    yield helper.make_node(
        "Cast", [half], list(node.output), name=f"{node.name}/Widen", to=TensorProto.FLOAT
    )

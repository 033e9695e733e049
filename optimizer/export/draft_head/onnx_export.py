"""The trained draft head as an ONNX graph with quantized matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from torch import Tensor

from optimizer.export.draft_head.head import EPSILON, DraftHead
from optimizer.export.front.blocks import OPSET

ADAPTER_BITS: Final = 8
BLOCK_SIZE: Final = 32
NUM_GUESSES: Final = 4
INT8_COMPUTE: Final = 4  # MatMulNBits' accuracy level


def export_head(head: DraftHead, path: Path, *, head_bits: int = 8) -> None:
    """Write the head to `path`: hidden float32 [T, D] -> token_ids int64 [T, 4], the likeliest
    first, and probabilities float32 [T, 4].

    The probabilities are shares among the head's own tokens. head_bits: 4 or 8, of the matrix that
    gives the logits.
    """
    graph = _Graph()
    x = graph.rms_norm("hidden")
    y = graph.matmul(x, _weight(head.linear.weight), "linear")
    for index, block in enumerate(head.mlps):
        entry = x if index == 0 else graph.rms_norm(y)
        gate = graph.matmul(entry, _weight(block.gate.weight), f"gate_{index}")
        up = graph.matmul(entry, _weight(block.up.weight), f"up_{index}")
        activated = graph.node("Mul", gate, graph.node("Sigmoid", gate))
        inner = graph.node("Mul", activated, up)
        down = graph.matmul(inner, _weight(block.down.weight), f"down_{index}")
        y = graph.node("Add", y, down)
    logits = graph.matmul(y, _weight(head.embedding), "head")
    share = graph.node("Softmax", logits, axis=-1)
    count = graph.constant(np.array([NUM_GUESSES], np.int64))
    graph.nodes.append(
        helper.make_node("TopK", [share, count], ["probabilities", "places"], axis=-1)
    )
    tokens = graph.constant(head.tokens.cpu().numpy().astype(np.int64))
    graph.nodes.append(helper.make_node("Gather", [tokens, "places"], ["token_ids"]))
    model = graph.model(head.shape.hidden_size)
    adapter = [
        node.name for node in model.graph.node if node.op_type == "MatMul" and node.name != logits
    ]
    model = _quantized(model, head_bits, kept=adapter)
    onnx.save(_quantized(model, ADAPTER_BITS, kept=[]), str(path))


def _quantized(model: onnx.ModelProto, bits: int, *, kept: list[str]) -> onnx.ModelProto:
    """The model with its float matrices quantized, but for those of the nodes `kept`."""
    quantizer = MatMulNBitsQuantizer(
        model,
        bits=bits,
        block_size=BLOCK_SIZE,
        is_symmetric=False,
        accuracy_level=INT8_COMPUTE,
        nodes_to_exclude=kept,
    )
    quantizer.process()
    quantized: onnx.ModelProto = quantizer.model.model
    return quantized


class _Graph:
    """A graph under construction; values are named by their number."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, kind: str, *inputs: str, **attributes: int) -> str:
        name = f"value_{len(self.nodes)}"
        options: dict[str, Any] = dict(attributes)
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **options))
        return name

    def constant(self, value: npt.NDArray[np.generic], name: str | None = None) -> str:
        name = name or f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def matmul(self, x: str, weight: npt.NDArray[np.float32], name: str) -> str:
        """x [T, K] times weight [K, N]."""
        return self.node("MatMul", x, self.constant(weight, name))

    def rms_norm(self, x: str) -> str:
        axes = self.constant(np.array([-1], np.int64))
        mean = self.node("ReduceMean", self.node("Mul", x, x), axes)
        safe = self.node("Add", mean, self.constant(np.array(EPSILON, np.float32)))
        return self.node("Div", x, self.node("Sqrt", safe))

    def model(self, hidden_size: int) -> onnx.ModelProto:
        rows: list[str | int | None] = ["T", NUM_GUESSES]
        graph = helper.make_graph(
            self.nodes,
            "draft_head",
            [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["T", hidden_size])],
            [
                helper.make_tensor_value_info("token_ids", TensorProto.INT64, rows),
                helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, rows),
            ],
            self.weights,
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10
        )


def _weight(weight: Tensor) -> npt.NDArray[np.float32]:
    """A torch matrix [N, K] as numpy [K, N]."""
    matrix: npt.NDArray[np.float32] = weight.detach().float().cpu().numpy()
    return np.ascontiguousarray(matrix.T)

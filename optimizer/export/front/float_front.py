"""The exporter's float32 graph of a front, and the same graph with fewer bits in each layer.

The exporter makes float32 only. Its matrices are then rounded one after the other (`rounding`),
each to its own layer's bits, weighted by the inputs that a sample text gives it. Weights stay in
the exporter's file until they are needed, so at most one float32 matrix is in memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from optimizer.artifacts.geometry import ModelGeometry
from optimizer.errors import BuildError
from optimizer.export.front.rounding import BLOCK_SIZE, RoundedMatrix, round_matrix

NODE_LAYER: Final = re.compile(r"/layers\.(\d+)/")  # in node names
CONTRIB: Final = "com.microsoft"
MEAN_SQUARE_SUFFIX: Final = ".mean_square"
PROBE_NAME: Final = "probe.onnx"


@dataclass(slots=True)
class FloatFront:
    """A front's graph without weights; they are in `folder`, as the exporter wrote them.

    importance: mean square [K] of each input of a matrix, by the input's name. Rounded matrices are
    kept, so that other fronts of the same model are cheap.
    """

    graph: onnx.ModelProto
    folder: Path
    importance: Mapping[str, npt.NDArray[np.float32]]
    _rounded: dict[tuple[str, int], RoundedMatrix] = field(default_factory=dict)

    def at(
        self, layer_bits: Sequence[int], *, head_bits: int, accuracy_level: int
    ) -> onnx.ModelProto:
        """The graph with its weights, the matrices of layer i at `layer_bits[i]` bits.

        head_bits: of the head, where it is in the graph. accuracy_level: MatMulNBits' attribute,
        what the kernels compute in. A matrix of 16 or 32 bits stays float32.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.graph)
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if not is_matrix(node, weights):
                continue
            layer = NODE_LAYER.search(node.name)
            bits = head_bits if layer is None else layer_bits[int(layer.group(1))]
            if bits > 8:
                continue
            rounded = self._round(node, weights[node.input[1]], bits)
            _replace_by_rounded(
                node, model.graph, rounded, weights[node.input[1]].dims, accuracy_level
            )
        read = {name for node in model.graph.node for name in node.input}
        kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        external_data_helper.load_external_data_for_model(model, str(self.folder))
        return model

    def _round(self, node: onnx.NodeProto, tensor: onnx.TensorProto, bits: int) -> RoundedMatrix:
        key = (tensor.name, bits)
        if key not in self._rounded:
            matrix = torch.from_numpy(numpy_helper.to_array(tensor, str(self.folder)).T.copy())
            inputs = torch.from_numpy(self.importance[node.input[0]])
            self._rounded[key] = round_matrix(matrix, inputs, bits)
        return self._rounded[key]


def is_matrix(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether the node is a product with a weight matrix."""
    return (
        node.op_type == "MatMul"
        and node.input[1] in weights
        and len(weights[node.input[1]].dims) == 2
    )


def input_importance(
    graph: onnx.ModelProto, folder: Path, geometry: ModelGeometry, token_ids: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[np.float32]]:
    """Mean square [K] of every input of the graph's matrices over one text [T], by input name.

    The weights of `graph` are float32, in `folder`. Raises BuildError where ONNX Runtime cannot run
    it.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(graph)
    weights = {tensor.name: tensor for tensor in probe.graph.initializer}
    names = sorted({n.input[0] for n in probe.graph.node if is_matrix(n, weights)})
    outputs = [name + MEAN_SQUARE_SUFFIX for name in names]
    axes = "importance.axes"
    probe.graph.initializer.append(numpy_helper.from_array(np.array([0, 1], np.int64), axes))
    for name, output in zip(names, outputs, strict=True):
        squares = f"{name}.square"
        probe.graph.node.append(helper.make_node("Mul", [name, name], [squares]))
        probe.graph.node.append(
            helper.make_node("ReduceMean", [squares, axes], [output], keepdims=0)
        )
        probe.graph.output.append(
            helper.make_tensor_value_info(output, TensorProto.FLOAT, ["channels"])
        )
    onnx.save(probe, folder / PROBE_NAME)
    try:
        session = ort.InferenceSession(folder / PROBE_NAME, providers=["CPUExecutionProvider"])
        found = session.run(outputs, empty_cache_inputs(session, geometry, token_ids))
    except Exception as error:  # the engine raises its own kinds
        raise BuildError(f"the front cannot be tried on text: {error}") from error
    return dict(zip(names, found, strict=True))


def empty_cache_inputs(
    session: Any, geometry: ModelGeometry, token_ids: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """Inputs of a front that reads `token_ids` int64 [T] from an empty cache."""
    count = len(token_ids)
    inputs: dict[str, Any] = {
        "input_ids": token_ids[None],
        "seqlens_k": np.array([count - 1], dtype=np.int32),
        "total_sequence_length": np.array(count, dtype=np.int32),
    }
    for value in session.get_inputs():
        if value.name.startswith("past_key_values."):
            kind = np.int8 if value.type == "tensor(int8)" else np.float32
            inputs[value.name] = np.zeros(
                (1, geometry.num_kv_heads, 0, geometry.head_dim), dtype=kind
            )
    return inputs


def _replace_by_rounded(
    node: onnx.NodeProto,
    graph: onnx.GraphProto,
    rounded: RoundedMatrix,
    dims: Sequence[int],
    accuracy_level: int,
) -> None:
    """Turn a MatMul into the product with a rounded matrix."""
    name = node.input[1]
    parts = {f"{name}.codes": rounded.codes, f"{name}.scales": rounded.scales}
    if rounded.zeros is not None:
        parts[f"{name}.zeros"] = rounded.zeros
    known = {tensor.name for tensor in graph.initializer}
    graph.initializer.extend(
        numpy_helper.from_array(value.numpy(), key)
        for key, value in parts.items()
        if key not in known
    )
    inputs, outputs = dims
    replacement = helper.make_node(
        "MatMulNBits",
        [node.input[0], *parts],
        list(node.output),
        name=node.name,
        domain=CONTRIB,
        K=inputs,
        N=outputs,
        bits=rounded.bits,
        block_size=BLOCK_SIZE,
        accuracy_level=accuracy_level,
    )
    node.CopyFrom(replacement)

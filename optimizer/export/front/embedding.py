"""The embedding's look-up as an ONNX graph, and smaller storage for it and for float weights."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET: Final = 21
BLOCK_SIZE: Final = 32
CONTRIB: Final = "com.microsoft"
# Below 16 bits the embedding gets 8. A token reads one row of it, so 4 bits would save no time, and
# the embedding's error reaches every layer.
EMBEDDING_BITS: Final = 8


def embedding_graph(weight: npt.NDArray[np.float32], *, scale: float | None) -> onnx.ModelProto:
    """The front of split 0: input_ids int64 [1, T] -> hidden_states float32 [1, T, D].

    weight: [V, D] float32. scale: a factor on the rows, for the families that have one.
    """
    initializers = [numpy_helper.from_array(weight, "embedding")]
    steps = [helper.make_node("Gather", ["embedding", "input_ids"], ["rows"], name="/embedding")]
    if scale is None:
        steps.append(helper.make_node("Identity", ["rows"], ["hidden_states"]))
    else:
        initializers.append(numpy_helper.from_array(np.array(scale, np.float32), "scale"))
        steps.append(helper.make_node("Mul", ["rows", "scale"], ["hidden_states"]))
    graph = helper.make_graph(
        steps,
        "front",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "num_tokens"])],
        [
            helper.make_tensor_value_info(
                "hidden_states", TensorProto.FLOAT, [1, "num_tokens", weight.shape[1]]
            )
        ],
        initializers,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def shrink_weights(model: onnx.ModelProto, bits: int) -> None:
    """Store the embedding at 8 bits, or at 16 for `bits` 16, and at 16 bits the matrices too.

    Nothing changes at 32. Matrices of 4 and 8 bits are rounded before (`float_front`). At 16 bits
    the file holds float16, which ONNX Runtime widens once at load: half the download, but the
    memory of 32 bits.
    """
    if bits == 32:
        return
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in list(graph.node):
        if node.op_type == "Gather" and node.input[1] == "input_ids":
            weight = weights[node.input[0]]
            if bits == 16:
                _narrow_gather(graph, node, weight)
            else:
                _quantize_gather(graph, node, weight, EMBEDDING_BITS)
        elif node.op_type == "MatMul" and bits == 16 and node.input[1] in weights:
            _narrow_matrix(graph, node, weights[node.input[1]])


def quantize_blocks(
    weight: npt.NDArray[np.float32], bits: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Codes, scales and zero points as GatherBlockQuantized reads them, blocks of 32 along D.

    weight: [V, D] float32, D % 32 == 0. Asymmetric: a block's range, which always includes 0, is
    divided evenly, and values go to the nearest step. Returns codes [V, D * bits / 8] uint8 (two
    4-bit codes a byte, the lower half first), scales [V, D / 32] float32, and zero points packed
    like the codes.
    """
    top = (1 << bits) - 1
    blocks = weight.reshape(len(weight), -1, BLOCK_SIZE)  # [V, D / 32, 32]
    low = np.minimum(blocks.min(axis=-1), 0.0)
    high = np.maximum(blocks.max(axis=-1), 0.0)
    with np.errstate(over="ignore"):  # the caller refuses scales that are not finite
        scales = ((high - low) / top).astype(np.float32)
    divisors = np.where(scales == 0, np.float32(1), scales)
    zeros = np.clip(np.rint(-low / divisors), 0, top).astype(np.uint8)
    codes = np.clip(np.rint(blocks / divisors[..., None]) + zeros[..., None], 0, top)
    return _packed(codes.astype(np.uint8).reshape(weight.shape), bits), scales, _packed(zeros, bits)


def _packed(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    if bits == 8:
        return codes
    if codes.shape[1] % 2:
        codes = np.pad(codes, ((0, 0), (0, 1)))
    upper = np.left_shift(codes[:, 1::2], 4, dtype=np.uint8)
    return np.bitwise_or(codes[:, 0::2], upper, dtype=np.uint8)


def _quantize_gather(
    graph: onnx.GraphProto, node: onnx.NodeProto, weight: onnx.TensorProto, bits: int
) -> None:
    codes, scales, zeros = quantize_blocks(numpy_helper.to_array(weight), bits)
    name = weight.name
    parts: dict[str, npt.NDArray[Any]] = {
        f"{name}.codes": codes,
        f"{name}.scales": scales,
        f"{name}.zeros": zeros,
    }
    replacement = helper.make_node(
        "GatherBlockQuantized",
        [f"{name}.codes", node.input[1], f"{name}.scales", f"{name}.zeros"],
        list(node.output),
        name=node.name,
        domain=CONTRIB,
        gather_axis=0,
        quantize_axis=1,
        block_size=BLOCK_SIZE,
        bits=bits,
    )
    _replace(graph, node, [replacement])
    _drop_if_unused(graph, weight)
    graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in parts.items())


def _narrow_gather(graph: onnx.GraphProto, node: onnx.NodeProto, weight: onnx.TensorProto) -> None:
    rows = f"{node.output[0]}.float16"
    narrow = _add_float16(graph, weight)
    _replace(
        graph,
        node,
        [
            helper.make_node("Gather", [narrow, node.input[1]], [rows], name=node.name),
            helper.make_node("Cast", [rows], list(node.output), to=TensorProto.FLOAT),
        ],
    )
    _drop_if_unused(graph, weight)


def _narrow_matrix(graph: onnx.GraphProto, node: onnx.NodeProto, weight: onnx.TensorProto) -> None:
    wide = f"{weight.name}.float32"
    cast = helper.make_node("Cast", [_add_float16(graph, weight)], [wide], to=TensorProto.FLOAT)
    product = helper.make_node("MatMul", [node.input[0], wide], list(node.output), name=node.name)
    _replace(graph, node, [cast, product])
    _drop_if_unused(graph, weight)


def _add_float16(graph: onnx.GraphProto, weight: onnx.TensorProto) -> str:
    name = f"{weight.name}.float16"
    if all(tensor.name != name for tensor in graph.initializer):
        values = numpy_helper.to_array(weight).astype(np.float16)
        graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def _replace(graph: onnx.GraphProto, node: onnx.NodeProto, by: list[onnx.NodeProto]) -> None:
    position = list(graph.node).index(node)
    graph.node.remove(node)
    for offset, replacement in enumerate(by):
        graph.node.insert(position + offset, replacement)


def _drop_if_unused(graph: onnx.GraphProto, weight: onnx.TensorProto) -> None:
    if not any(weight.name in node.input for node in graph.node):
        graph.initializer.remove(weight)

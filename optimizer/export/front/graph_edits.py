"""Changes to the exporter's graph: what it ends in, its mask, its windows and its cache.

All functions change the model in place. Node and input names are those of onnxruntime-genai's
model builder.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from optimizer.artifacts.geometry import ModelGeometry
from optimizer.errors import BuildError
from optimizer.export.sources.tensor_names import layer_of


def expose_residual_stream(model: onnx.ModelProto) -> None:
    """Replace the final norm by the sum that it normalizes: `hidden_states` is the residual.

    The exporter's graph ends in SkipSimplifiedLayerNormalization(residual, update, weight).
    Raises BuildError where it ends otherwise.
    """
    graph = model.graph
    final = next((node for node in graph.node if "hidden_states" in node.output), None)
    if final is None or final.op_type != "SkipSimplifiedLayerNormalization":
        raise BuildError("the exporter's graph does not end in the norm that was expected")
    residual, update, weight = final.input[:3]
    total = helper.make_node("Add", [residual, update], ["hidden_states"], name="/residual/Add")
    position = list(graph.node).index(final)
    graph.node.remove(final)
    graph.node.insert(position, total)
    _drop_initializer(graph, weight)


def replace_attention_mask(model: onnx.ModelProto) -> None:
    """Feed the attention kernels `seqlens_k` and `total_sequence_length` directly.

    Raises BuildError for a graph without GroupQueryAttention.
    """
    graph = model.graph
    attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    if not attention:
        raise BuildError("the exporter's graph has no GroupQueryAttention")
    for node in attention:
        node.input[5], node.input[6] = "seqlens_k", "total_sequence_length"
    mask = next((value for value in graph.input if value.name == "attention_mask"), None)
    if mask is not None:
        graph.input.remove(mask)
    graph.input.extend(
        [
            helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, [1]),
            helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, []),
        ]
    )
    _drop_unused_nodes(graph)


def set_attention_windows(model: onnx.ModelProto, geometry: ModelGeometry) -> None:
    """Give every attention node its layer's window (-1: none) over one full-length cache.

    The exporter leaves out Mistral's window. It gives others a ring buffer as long as the window,
    in which nothing can be rolled back. Raises BuildError for a node without a layer number.
    """
    for node in model.graph.node:
        if node.op_type != "GroupQueryAttention":
            continue
        layer = layer_of(node.name.replace("/", "."))
        if layer is None:
            raise BuildError(f"no layer number in the attention node {node.name!r}")
        window = geometry.window_of_layer(layer)
        changed = ("local_window_size", "sliding_window_cache")
        kept = [attribute for attribute in node.attribute if attribute.name not in changed]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.attribute.append(
            helper.make_attribute("local_window_size", -1 if window is None else window)
        )


def halve_cache(model: onnx.ModelProto) -> None:
    """Run attention, and keep its cache, in float16; everything around it stays float32."""
    graph = model.graph
    for node in [node for node in graph.node if node.op_type == "GroupQueryAttention"]:
        before: list[onnx.NodeProto] = []
        for index in (0, 1, 2, 7, 8):  # query, key, value, cosines, sines
            if index < len(node.input) and node.input[index]:
                narrow = f"{node.name}/input_{index}.float16"
                before.append(
                    helper.make_node("Cast", [node.input[index]], [narrow], to=TensorProto.FLOAT16)
                )
                node.input[index] = narrow
        wide = node.output[0]
        node.output[0] = f"{wide}.float16"
        after = helper.make_node("Cast", [node.output[0]], [wide], to=TensorProto.FLOAT)
        position = list(graph.node).index(node)
        graph.node.insert(position + 1, after)
        for cast in reversed(before):
            graph.node.insert(position, cast)
    for value in (*graph.input, *graph.output):
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    # Shapes and types of inner values no longer hold; ONNX Runtime infers them anew.
    del graph.value_info[:]


def _drop_unused_nodes(graph: onnx.GraphProto) -> None:
    wanted = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))


def _drop_initializer(graph: onnx.GraphProto, name: str) -> None:
    if any(name in node.input for node in graph.node):
        return
    for initializer in graph.initializer:
        if initializer.name == name:
            graph.initializer.remove(initializer)
            return

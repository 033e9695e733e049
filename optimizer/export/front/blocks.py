"""The small vocabulary of ONNX blocks that every front is made of.

ONNX Runtime's fused kernels stay: SkipSimplifiedLayerNormalization adds and normalizes in one,
GroupQueryAttention rotates, caches and attends. Names of nodes hold the layer's number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET: Final = 21
IR_VERSION: Final = 10
CONTRIB: Final = "com.microsoft"
CACHE_TYPES: Final[dict[int, int]] = {
    8: TensorProto.INT8,
    16: TensorProto.FLOAT16,
    32: TensorProto.FLOAT,
}


class WeightStore(Protocol):
    """Where a graph's weights go."""

    def put(self, name: str, values: npt.NDArray[Any]) -> onnx.TensorProto:
        """Keep the values; returns the initializer that stands for them in the graph."""


class InlineStore:
    """Weights inside the graph: for those that are small."""

    def put(self, name: str, values: npt.NDArray[Any]) -> onnx.TensorProto:
        """See WeightStore."""
        return numpy_helper.from_array(np.ascontiguousarray(values), name)


class Graph:
    """An ONNX graph that grows node by node."""

    def __init__(self, store: WeightStore) -> None:
        self._store = store
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def node(
        self,
        kind: str,
        inputs: Sequence[str],
        name: str,
        *,
        out: Sequence[str] | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Append a node; returns its first output's name. out: names of outputs ("": unused)."""
        outputs = [f"{name}/output_0"] if out is None else list(out)
        self._nodes.append(
            helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes)
        )
        return outputs[0]

    def weight(self, name: str, values: npt.NDArray[Any]) -> str:
        """Add a weight; one of this name that is there already stays. Returns the name."""
        if name not in self._weights:
            self._weights[name] = self._store.put(name, values)
        return name

    def add(self, tensor: onnx.TensorProto) -> str:
        """Add a weight that is kept already. Returns its name."""
        self._weights[tensor.name] = tensor
        return tensor.name

    def make_overridable(self, name: str) -> None:
        """Declare a weight as an input whose default it is: no session packs or folds it."""
        tensor = self._weights[name]
        self.input(name, tensor.data_type, list(tensor.dims))

    def constant(self, value: float | Sequence[int], name: str) -> str:
        """A float32 number, or int64 numbers [n]."""
        kind: type[Any] = np.float32 if isinstance(value, float) else np.int64
        return self.weight(name, np.array(value, dtype=kind))

    def input(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        """Declare an input of the graph. Returns its name."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def output(
        self, name: str, kind: int, shape: Sequence[int | str], *, first: bool = False
    ) -> str:
        """Declare an output of the graph, the last one or the first. Returns its name."""
        value = helper.make_tensor_value_info(name, kind, list(shape))
        self._outputs.insert(0 if first else len(self._outputs), value)
        return name

    def model(self) -> onnx.ModelProto:
        """The graph as a model."""
        graph = helper.make_graph(
            self._nodes, "front", self._inputs, self._outputs, list(self._weights.values())
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


class Residual(NamedTuple):
    """The residual stream: a sum, and what has yet to be added to it."""

    total: str
    update: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """A normalization. weight, bias: float32 [D], None in one that has none. is_rms: no mean is
    taken off."""

    is_rms: bool
    eps: float
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32] | None = None


def sum_of(graph: Graph, stream: Residual, name: str, out: str | None = None) -> str:
    """The stream as one value, under the name `out` if there is one."""
    outputs = None if out is None else [out]
    if stream.update is None:
        return (
            stream.total if out is None else graph.node("Identity", [stream.total], name, out=[out])
        )
    return graph.node("Add", [stream.total, stream.update], name, out=outputs)


def zeros_like(graph: Graph, rows: str) -> str:
    """Zeros of the shape of `rows`: a segment's first norm then adds them, in the kernel that one
    graph has at this place, and gives the same bits."""
    zero = graph.weight("/residual/zero", np.zeros((), dtype=np.float32))
    return graph.node("Mul", [rows, zero], "/residual/Mul")


def normed(graph: Graph, value: str, norm: Norm, name: str, weight_name: str) -> str:
    """The norm of one value along its last axis."""
    inputs = [value, graph.weight(f"{weight_name}.weight", norm.weight)]
    if norm.is_rms:
        return graph.node(
            "SimplifiedLayerNormalization",
            inputs,
            f"{name}/LayerNorm",
            out=[f"{name}/output_0"],
            axis=-1,
            epsilon=norm.eps,
            stash_type=1,
        )
    if norm.bias is not None:
        inputs.append(graph.weight(f"{weight_name}.bias", norm.bias))
    return graph.node(
        "LayerNormalization",
        inputs,
        f"{name}/LayerNorm",
        out=[f"{name}/output_0"],
        axis=-1,
        epsilon=norm.eps,
        stash_type=1,
    )


def normed_stream(
    graph: Graph, stream: Residual, norm: Norm, name: str, weight_name: str
) -> tuple[str, Residual]:
    """The norm of the stream, and the stream with its update added."""
    if stream.update is None:
        return normed(graph, stream.total, norm, name, weight_name), stream
    inputs = [stream.total, stream.update, graph.weight(f"{weight_name}.weight", norm.weight)]
    kind = "SkipSimplifiedLayerNormalization"
    if not norm.is_rms:
        kind = "SkipLayerNormalization"
        zeros = np.zeros_like(norm.weight)
        bias = zeros if norm.bias is None else norm.bias
        inputs.append(graph.weight(f"{weight_name}.bias", bias))
    total = f"{name}/output_3"
    out = graph.node(
        kind,
        inputs,
        f"{name}/SkipLayerNorm",
        out=[f"{name}/output_0", "", "", total],
        domain=CONTRIB,
        epsilon=norm.eps,
    )
    return out, Residual(total)


def activated(graph: Graph, value: str, kind: str, name: str) -> str:
    """An activation, by the name that transformers' config gives it."""
    if kind == "silu":
        gate = graph.node("Sigmoid", [value], f"{name}/Sigmoid")
        return graph.node("Mul", [value, gate], f"{name}/Mul")
    if kind == "relu2":
        positive = graph.node("Relu", [value], f"{name}/Relu")
        return graph.node("Mul", [positive, positive], f"{name}/Mul")
    if kind == "gelu_tanh":
        return graph.node("Gelu", [value], f"{name}/FastGelu", approximate="tanh")
    if kind == "gelu":
        return graph.node("Gelu", [value], f"{name}/Gelu")
    return graph.node("Relu", [value], f"{name}/Relu")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionNode:
    """What GroupQueryAttention is told.

    cache_bits: of keys and values. tables: names of cosines and sines, None: no rotation. scales:
    float32 [G * size] of keys and of values, for a cache of 8 bits. sinks: float32 [H] or None.
    positions: the input that says each row's position; "": its place in the cache is its position.
    """

    num_heads: int
    num_kv_heads: int
    size: int
    scale: float
    cap: float
    window: int | None
    cache_bits: int
    tables: tuple[str, str] | None
    scales: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None
    sinks: npt.NDArray[np.float32] | None = None
    positions: str = ""


def attention(graph: Graph, heads: Sequence[str], layer: int, node: AttentionNode) -> str:
    """Rotate, cache and attend. heads: query, key and value, or one value that holds all three.

    Declares the cache's inputs and outputs. At 16 bits the kernel computes in float16, and
    everything around it stays float32.
    """
    name = f"/model/layers.{layer}/attn/GroupQueryAttention"
    narrow = node.cache_bits == 16
    inputs = [*heads, *[""] * (3 - len(heads))]
    if narrow:
        inputs = [
            value
            and graph.node("Cast", [value], f"{name}/input_{i}.float16", to=TensorProto.FLOAT16)
            for i, value in enumerate(inputs)
        ]
    kind = CACHE_TYPES[node.cache_bits]
    for part in ("key", "value"):
        shape: list[int | str] = [1, node.num_kv_heads, "past_tokens", node.size]
        inputs.append(graph.input(f"past_key_values.{layer}.{part}", kind, shape))
        graph.output(f"present.{layer}.{part}", kind, [*shape[:2], "all_tokens", node.size])
    positions = node.positions if node.tables is not None else ""
    inputs += ["seqlens_k", "total_sequence_length", *(node.tables or ("", "")), positions, ""]
    attributes: dict[str, Any] = {}
    last = ""
    if node.sinks is not None:
        sinks = node.sinks.astype(np.float16) if narrow else node.sinks
        last = graph.weight(f"model.layers.{layer}.attn.sinks", sinks)
    inputs.append(last)
    if node.scales is not None:
        for part, values in zip("kv", node.scales, strict=True):
            inputs.append(graph.weight(f"model.layers.{layer}.attn.{part}_scale", values))
            attributes[f"{part}_quant_type"] = "PER_CHANNEL"
        attributes["kv_cache_bit_width"] = 8
    out = graph.node(
        "GroupQueryAttention",
        inputs,
        name,
        out=[f"{name}/output_0", f"present.{layer}.key", f"present.{layer}.value"],
        domain=CONTRIB,
        num_heads=node.num_heads,
        kv_num_heads=node.num_kv_heads,
        scale=node.scale,
        softcap=node.cap,
        do_rotary=int(node.tables is not None),
        rotary_interleaved=0,
        local_window_size=-1 if node.window is None else node.window,
        **attributes,
    )
    if narrow:
        return graph.node("Cast", [out], f"{name}/Cast", to=TensorProto.FLOAT)
    return out

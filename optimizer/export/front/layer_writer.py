"""One layer after the other into a graph: norms, attention, MLP and what joins them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from optimizer.artifacts.bundle import POSITIONS_INPUT
from optimizer.errors import ModelError
from optimizer.export.front.blocks import (
    AttentionNode,
    Graph,
    Residual,
    activated,
    attention,
    normed,
    normed_stream,
    sum_of,
)
from optimizer.export.front.expert_node import Experts
from optimizer.export.front.layer_form import DecoderForm, LayerForm
from optimizer.export.front.layer_weights import LayerMatrix, LayerWeights

F32 = npt.NDArray[np.float32]
KvScales = tuple[F32, F32]  # of keys and of values, [G * size] each


class Matrices(Protocol):
    """How products with matrices become nodes."""

    def product(self, graph: Graph, rows: str, name: str, matrix: LayerMatrix) -> str:
        """Rows times a matrix [N, K]. name: of the node. Returns the product's name."""

    def experts(self, graph: Graph, rows: str, scores: str, experts: Experts) -> str:
        """What the chosen experts make of rows [1, T, D]; scores: [T, E], before any softmax."""


class LayerWriter:
    """Writes layers of one model into one graph.

    tables: names of cosines and sines in the graph, by kind. cache_bits: of keys and values.
    positions: the graph's input of positions (`AttentionNode`).
    """

    def __init__(
        self,
        graph: Graph,
        form: DecoderForm,
        matrices: Matrices,
        *,
        tables: Mapping[str, tuple[str, str]],
        cache_bits: int,
        positions: str = "",
    ) -> None:
        self._graph = graph
        self._form = form
        self._matrices = matrices
        self._tables = tables
        self._cache_bits = cache_bits
        self._positions = positions

    def layer(
        self, layer: LayerForm, weights: LayerWeights, stream: Residual, scales: KvScales | None
    ) -> Residual:
        """The stream after one layer; its last update has not been added yet."""
        norms = self._form.family.norms
        base = f"/model/layers.{layer.index}"
        rows, stream = self._before("attn", norms.before_attention, layer, weights, stream)
        update = self._attention(layer, weights, rows, scales)
        if norms.parallel:
            both = [update, self._mlp(layer, weights, rows)]
            return Residual(stream.total, self._graph.node("Add", both, f"{base}/updates/Add"))
        stream = Residual(stream.total, self._after(norms.after_attention, layer, weights, update))
        rows, stream = self._before("mlp", norms.before_mlp, layer, weights, stream)
        update = self._mlp(layer, weights, rows)
        return Residual(stream.total, self._after(norms.after_mlp, layer, weights, update))

    def _before(
        self, part: str, name: str | None, layer: LayerForm, weights: LayerWeights, stream: Residual
    ) -> tuple[str, Residual]:
        """What enters attention or MLP, and the stream as one sum."""
        base = f"/model/layers.{layer.index}"
        if name is None:
            total = sum_of(self._graph, stream, f"{base}/{part}/sum/Add")
            return total, Residual(total)
        norm, weight_name = weights.norm(name), f"model.layers.{layer.index}.{name}"
        return normed_stream(self._graph, stream, norm, f"{base}/{name}", weight_name)

    def _after(self, name: str | None, layer: LayerForm, weights: LayerWeights, update: str) -> str:
        if name is None:
            return update
        place, weight_name = (
            f"/model/layers.{layer.index}/{name}",
            f"model.layers.{layer.index}.{name}",
        )
        return normed(self._graph, update, weights.norm(name), place, weight_name)

    def _attention(
        self, layer: LayerForm, weights: LayerWeights, rows: str, scales: KvScales | None
    ) -> str:
        form, graph = self._form, self._graph
        base = f"/model/layers.{layer.index}/attn"
        qkv = self._product(rows, f"{base}/qkv_proj", weights.qkv(), weights.qkv_bias())
        if form.clip is not None:
            least = graph.constant(-float(form.clip), "clip.least")
            most = graph.constant(float(form.clip), "clip.most")
            qkv = graph.node("Clip", [qkv, least, most], f"{base}/qkv_proj/Clip")
        heads = (
            [qkv]
            if form.family.query_key_norms is None
            else self._normed_heads(qkv, base, layer, weights)
        )
        tables = None if layer.rotary is None else self._tables[layer.rotary]
        mixed = attention(
            graph,
            heads,
            layer.index,
            AttentionNode(
                num_heads=form.num_heads,
                num_kv_heads=form.num_kv_heads,
                size=form.layout.size,
                scale=layer.scale,
                cap=form.score_cap,
                window=layer.window,
                cache_bits=self._cache_bits,
                tables=tables,
                scales=scales,
                sinks=weights.sinks(),
                positions=self._positions,
            ),
        )
        return self._product(mixed, f"{base}/o_proj", weights.out(), weights.out_bias())

    def _normed_heads(
        self, qkv: str, base: str, layer: LayerForm, weights: LayerWeights
    ) -> list[str]:
        """Queries, keys and values, the first two normed."""
        form, graph = self._form, self._graph
        size = form.layout.size
        widths = [count * size for count in (form.num_heads, *[form.num_kv_heads] * 2)]
        name = f"{base}/qkv_proj/Split"
        parts = [f"{name}/output_{index}" for index in range(3)]
        graph.node("Split", [qkv, graph.constant(widths, "qkv_widths")], name, out=parts, axis=-1)
        for index, which in enumerate("qk"):
            norm = weights.head_norm(which)
            place = f"{base}/{which}_norm"
            weight_name = f"model.layers.{layer.index}.attn.{which}_norm.layernorm"
            if form.family.query_key_norms == "width":
                parts[index] = normed(graph, parts[index], norm, place, weight_name)
                continue
            shapes = [graph.constant([0, -1, size], "shape_of_heads")]
            shapes.append(graph.constant([0, -1, widths[index]], f"shape_of_{which}"))
            split = graph.node("Reshape", [parts[index], shapes[0]], f"{place}/Reshape_1")
            split = normed(graph, split, norm, place, weight_name)
            parts[index] = graph.node("Reshape", [split, shapes[1]], f"{place}/Reshape_2")
        return parts

    def _mlp(self, layer: LayerForm, weights: LayerWeights, rows: str) -> str:
        form, graph = self._form, self._graph
        base = f"/model/layers.{layer.index}/mlp"
        if layer.has_experts:
            return self._chosen_experts(base, weights, rows)
        matrices = weights.gate_up()
        values = {
            name: self._product(rows, f"{base}/{name}", matrices[name], bias)
            for name, bias in weights.gate_up_bias().items()
        }
        first = next(iter(values.values()))
        inner = activated(graph, first, form.activation, f"{base}/act_fn")
        if form.family.gated:
            inner = graph.node("Mul", [inner, values["up_proj"]], f"{base}/Mul")
        return self._product(inner, f"{base}/down_proj", weights.down(), weights.down_bias())

    def _chosen_experts(self, base: str, weights: LayerWeights, rows: str) -> str:
        form, graph = self._form, self._graph
        if form.experts is None:
            raise ModelError(f"{base}: experts in a family that has none")
        matrix, bias = weights.router()
        name = f"{base}/router"
        scores = graph.node(
            "MatMul", [rows, graph.weight(f"{_dotted(name)}.weight", matrix)], f"{name}/MatMul"
        )
        if bias is not None:
            held = graph.weight(f"{_dotted(name)}.bias", bias)
            scores = graph.node("Add", [scores, held], f"{name}/Add")
        flat = graph.constant([-1, form.experts.count], "shape_of_scores")
        scores = graph.node("Reshape", [scores, flat], f"{name}/Reshape")
        experts = Experts(
            name=f"{base}/experts",
            form=form.experts,
            up=weights.experts_up,
            down=weights.experts_down,
            up_bias=weights.experts_up_bias(),
            down_bias=weights.experts_down_bias(),
        )
        return self._matrices.experts(graph, rows, scores, experts)

    def _product(self, rows: str, name: str, matrix: LayerMatrix, bias: F32 | None) -> str:
        product = self._matrices.product(self._graph, rows, f"{name}/MatMul", matrix)
        if bias is None:
            return product
        weight = self._graph.weight(f"{_dotted(name)}.Add.bias", bias)
        return self._graph.node("Add", [product, weight], f"{name}/Add")


def _dotted(name: str) -> str:
    return name.strip("/").replace("/", ".")


STEP_INPUTS: Final = ("seqlens_k", "total_sequence_length")


def declare_positions(graph: Graph) -> str:
    """The position of each row, where it is not the row's place in the cache. Its name."""
    return graph.input(POSITIONS_INPUT, TensorProto.INT64, [1, "num_tokens"])


def declare_step(graph: Graph) -> None:
    """The two numbers that attention needs of a step."""
    graph.input(STEP_INPUTS[0], TensorProto.INT32, [1])
    graph.input(STEP_INPUTS[1], TensorProto.INT32, [])

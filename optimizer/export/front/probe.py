"""A front's layers over a text, one at a time in float32: what rounding needs, and whether they are
right.

Each layer is a graph of its own, whose matrices are inputs, so that no session holds a copy. It
gets the hidden state that transformers' layer got, and gives what transformers' layer gave, but for
float32's noise. A layer that departs further is a fault of the writer: the build stops there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from onnx import TensorProto
from torch import Tensor

from optimizer.errors import BuildError, ModelError
from optimizer.export.front.blocks import Graph, InlineStore, Norm, Residual, sum_of
from optimizer.export.front.half_trial import HalfTrial
from optimizer.export.front.layer_form import DecoderForm
from optimizer.export.front.layer_weights import LayerWeights
from optimizer.export.front.layer_writer import LayerWriter, declare_step
from optimizer.export.front.matrices import MEAN_SQUARE_SUFFIX, ProbeMatrices, weight_name

F32 = npt.NDArray[np.float32]
LARGEST_ERROR: Final = 1e-3  # relative, of a layer's worst row in float32


@dataclass(slots=True)
class Probed:
    """What the layers showed.

    importance: mean square [K] of each matrix's input, by node. errors: of each layer, its worst
    row's difference from transformers', relative to the row. num_rows: of the text. halves:
    what products in 16 bits would be, None where nobody asked.
    """

    importance: dict[str, F32] = field(default_factory=dict)
    errors: list[float] = field(default_factory=list)
    num_rows: int = 0
    halves: HalfTrial | None = None

    def record(self) -> dict[str, Any]:
        """The errors as the bundle keeps them."""
        return {
            "what": "largest relative error of a row, float32, against transformers' layer",
            "rows": self.num_rows,
            "worst": max(self.errors),
            "layers": self.errors,
        }


class LayerProbe:
    """Runs layers of one model in ONNX Runtime and compares them with transformers'.

    place: the model, as messages name it. halves: try products in 16 bits, too.
    """

    def __init__(self, form: DecoderForm, place: str, *, halves: bool = False) -> None:
        self.found = Probed(halves=HalfTrial() if halves else None)
        self._form = form
        self._place = place

    def layer(self, index: int, weights: LayerWeights, entering: Tensor, leaving: Tensor) -> None:
        """Try layer `index` on rows [T, D]; `leaving` are transformers' [T, D].

        Raises BuildError where they differ, or where ONNX Runtime cannot run the layer, and
        ModelError for values that are not finite.
        """
        matrices = ProbeMatrices()
        graph = self._graph(index, weights, matrices, len(entering))
        squares = dict.fromkeys(s + MEAN_SQUARE_SUFFIX for s in matrices.sources.values())
        names = ["leaving", *squares]
        if self.found.halves is not None:
            names += matrices.add_rows(graph)
        (found,) = self._run(index, graph, matrices, names, entering[None])
        self._compare(index, torch.from_numpy(found["leaving"][0]), leaving)
        if self.found.halves is not None:
            self.found.halves.look_at(
                {
                    node: (found[matrices.sources[node]][0], matrices.values[weight_name(node)])
                    for node in matrices.products
                }
            )
        for node, source in matrices.sources.items():
            self.found.importance[node] = found[source + MEAN_SQUARE_SUFFIX]

    def cached(
        self, index: int, weights: LayerWeights, entering: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values [G, T, head_dim] of layer `index` for each of the texts [B, T, D].

        Raises as `layer`.
        """
        matrices = ProbeMatrices()
        graph = self._graph(index, weights, matrices, entering.shape[1])
        names = [f"present.{index}.{part}" for part in ("key", "value")]
        for found in self._run(index, graph, matrices, names, entering):
            keys, values = (torch.from_numpy(found[name][0]) for name in names)
            yield keys, values

    def _run(
        self,
        index: int,
        graph: Graph,
        matrices: ProbeMatrices,
        names: list[str],
        texts: Tensor,
    ) -> Iterator[dict[str, F32]]:
        """These outputs of the layer's graph for each of the texts [B, T, D]."""
        inputs = {**step_inputs(texts.shape[1]), **matrices.values}
        shape = (1, self._form.num_kv_heads, 0, self._form.layout.size)
        for part in ("key", "value"):
            inputs[f"past_key_values.{index}.{part}"] = np.zeros(shape, np.float32)
        try:
            session = ort.InferenceSession(
                graph.model().SerializeToString(), _options(), providers=["CPUExecutionProvider"]
            )
            results = [
                session.run(names, {"rows": text[None].contiguous().numpy(), **inputs})
                for text in texts
            ]
        except Exception as error:  # the engine raises its own kinds
            raise BuildError(f"layer {index} cannot be tried on text: {error}") from error
        for result in results:
            if not all(np.isfinite(values).all() for values in result):
                raise ModelError(
                    f"{self._place}: the front's values on a sample text are not finite; its "
                    "weights are too large for float32"
                )
            yield dict(zip(names, result, strict=True))

    def _graph(
        self, index: int, weights: LayerWeights, matrices: ProbeMatrices, count: int
    ) -> Graph:
        """The layer's graph over `count` rows."""
        graph, form = Graph(InlineStore()), self._form
        layer = form.layers[index]
        graph.input("rows", TensorProto.FLOAT, [1, "num_tokens", form.hidden_size])
        declare_step(graph)
        tables = {}
        if layer.rotary is not None:
            cos, sin = form.rotary.table(layer.rotary, count, form.layout)
            tables[layer.rotary] = (
                graph.weight("cos", cos.numpy()),
                graph.weight("sin", sin.numpy()),
            )
        writer = LayerWriter(graph, form, matrices, tables=tables, cache_bits=32)
        stream = writer.layer(layer, weights, Residual("rows"), None)
        sum_of(graph, stream, "/leaving/Add", "leaving")
        graph.output("leaving", TensorProto.FLOAT, [1, "num_tokens", form.hidden_size])
        matrices.add_mean_squares(graph)
        return graph

    def _compare(self, index: int, got: Tensor, expected: Tensor) -> None:
        self.found.num_rows = len(expected)
        self.found.errors.append(worst_row_error(got, expected))
        if not self.found.errors[-1] <= LARGEST_ERROR:
            raise BuildError(
                f"{self._place}: layer {index} of the device's graph departs from transformers' by "
                f"{self.found.errors[-1]:.1e} of a row, more than {LARGEST_ERROR:.0e}; "
                "this model cannot be split (please report it)"
            )


def worst_row_error(got: Tensor, expected: Tensor) -> float:
    """The largest relative error of a row [T, D]: see `row_errors`."""
    return float(row_errors(got, expected).max())


def row_errors(got: Tensor, expected: Tensor) -> Tensor:
    """Relative errors [T] of rows [T, D]: a difference's length over the row's own."""
    size = torch.linalg.vector_norm(expected, dim=-1, dtype=torch.float64).clamp_min(1e-12)
    difference = torch.linalg.vector_norm(got - expected, dim=-1, dtype=torch.float64)
    errors: Tensor = difference / size
    return errors


def apply_norm(rows: Tensor, norm: Norm) -> Tensor:
    """A norm of rows [T, D], as its node computes it."""
    if not norm.is_rms:
        rows = rows - rows.mean(-1, keepdim=True)
    scale = torch.rsqrt(rows.square().mean(-1, keepdim=True) + norm.eps)
    out = rows * scale * torch.from_numpy(norm.weight)
    return out if norm.bias is None else out + torch.from_numpy(norm.bias)


def step_inputs(count: int) -> dict[str, Any]:
    """What a front is told of a step of `count` tokens from an empty cache."""
    return {
        "seqlens_k": np.array([count - 1], dtype=np.int32),
        "total_sequence_length": np.array(count, dtype=np.int32),
    }


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    return options

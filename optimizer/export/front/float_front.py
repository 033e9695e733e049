"""A front in float32, tried on text; and the same front with fewer bits in each layer.

Weights stay in the model's files until a layer is written, so at most one layer is in memory in
float32. Its matrices are rounded one after the other (`rounding`), each to its own layer's bits,
weighted by the inputs that a sample text gives it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto

from optimizer.artifacts.bundle import KEY_CHANNELS
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.artifacts.half_front import TRIED_ALONE, HalfRows
from optimizer.artifacts.plan import WeightBlocks
from optimizer.cost.front_kernels import block_size
from optimizer.errors import BuildError
from optimizer.export.front.blocks import Graph, Residual, normed_stream, sum_of, zeros_like
from optimizer.export.front.embedding import embedding
from optimizer.export.front.kv_scales import KvPeaks, KvScales, RotaryLayout
from optimizer.export.front.layer_form import DecoderForm, decoder_form
from optimizer.export.front.layer_weights import (
    LayerMatrix,
    LayerWeights,
    embedding_rows,
    head_bias,
    head_rows,
    stream_norm,
)
from optimizer.export.front.layer_writer import LayerWriter, declare_positions, declare_step
from optimizer.export.front.matrices import PART_WEIGHTS, StoredMatrices
from optimizer.export.front.probe import LayerProbe, Probed, apply_norm, step_inputs
from optimizer.export.front.rounding import taken_over
from optimizer.export.front.weight_files import WeightFile
from optimizer.export.layers.layered_model import LayeredModel
from optimizer.export.sources.expected_tensors import make_skeleton
from optimizer.export.sources.model_source import ModelSource

HEAD_NODE: Final = "/lm_head/MatMul"
ROWS_INPUT: Final = "rows"  # of a segment behind the first one


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontBits:
    """Bits of a front: of each layer's matrices, of the head and the embedding, and of the cache.

    accuracy_level: MatMulNBits' attribute, what the kernels compute in. blocks: the plan's.
    """

    layers: Sequence[int]
    head: int
    cache: int
    accuracy_level: int
    blocks: WeightBlocks = "small"


class FloatFront:
    """The embedding and the first `split` layers of a model; all layers and the head where that is
    all there is.

    kept: a folder for rounded matrices, where several fronts will be written. None: only one will.
    """

    def __init__(self, source: ModelSource, split: int, kept: Path | None = None) -> None:
        self.split = split
        self.found = Probed()
        self.kv_scales: KvScales | None = None
        self.half_rows: HalfRows | None = None
        self._source = source
        self._kept = kept
        skeleton = make_skeleton(source.config, str(source.place))
        self._form = decoder_form(source.config, source.geometry, skeleton)

    @property
    def form(self) -> DecoderForm:
        """What the model's layers are made of."""
        return self._form

    @property
    def is_whole(self) -> bool:
        """Whether the head is in the front."""
        return self.split == len(self._form.layers)

    def keeps_small_blocks(self, layer_bits: Sequence[int]) -> bool:
        """Whether the checkpoint holds a matrix on a grid of its layer's bits that only small
        blocks fit.

        Such matrices are taken over as they are. All are looked at: a quantized checkpoint may
        leave some alone, the first layer's among them.
        """
        return any(
            _fits_small_alone(matrix, bits, is_down=is_down)
            for layer, bits in enumerate(layer_bits)
            for matrix, is_down in self._matrices_of(layer)
        )

    def _matrices_of(self, layer: int) -> Iterator[tuple[LayerMatrix, bool]]:
        """A layer's matrices whose blocks the plan chooses, and whether each leads down."""
        weights = self._weights(layer, torch.float32)
        yield weights.qkv(), False
        yield weights.out(), False
        if not self._form.layers[layer].has_experts:  # these have blocks of their own
            for matrix in weights.gate_up().values():
                yield matrix, False
            yield weights.down(), True

    def probe(self, token_ids: npt.NDArray[np.int64], *, halves: int = 0) -> None:
        """Run the layers over a text [T]: needed before matrices of 8 bits or fewer are written.

        halves: of so many tokens keep `half_rows`, and try products in 16 bits, too; 0: do not.
        Raises as `LayerProbe.layer`.
        """
        probe = LayerProbe(self._form, str(self._source.place), halves=halves > 0)
        text = torch.from_numpy(token_ids)[None]
        leaving = torch.empty(0)
        for index, entering, leaving in self._states_of(text):
            probe.layer(index, self._weights(index, torch.float32), entering[0], leaving[0])
        if self.is_whole:
            rows = apply_norm(leaving[0], self._final_norm(torch.float32))
            probe.found.importance[HEAD_NODE] = rows.square().mean(0).numpy()
        self.found = probe.found
        if halves:
            ids = token_ids[:halves]
            rows = leaving[0, : len(ids)]
            if self.is_whole:
                rows = self._tried_head(leaving[0], len(ids))
            self.half_rows = HalfRows(ids, np.ascontiguousarray(rows.float().numpy()))

    def measure_cache(self, windows: torch.Tensor) -> None:
        """Find the scales of an 8-bit cache on texts int64 [B, T]. Raises as `LayerProbe.layer`."""
        probe = LayerProbe(self._form, str(self._source.place))
        peaks = KvPeaks(RotaryLayout(rotated=2 * self._form.layout.table_width))
        for index, entering, _ in self._states_of(windows):
            weights = self._weights(index, torch.float32)
            for keys, values in probe.cached(index, weights, entering):
                peaks.add(index, keys, values)
        self.kv_scales = peaks.scales()

    def _states_of(
        self, token_ids: torch.Tensor
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """See `LayeredModel.states_of`. The plainest attention: soft caps and sinks spelled out."""
        model = LayeredModel(self._source, folder=None, keep=False, attention="eager")
        return model.states_of(token_ids, self.split)

    def write(
        self,
        path: Path,
        bits: FrontBits,
        *,
        max_tokens: int,
        layers: range | None = None,
        max_positions: int = 0,
    ) -> None:
        """Write the graph to `path` and its weights beside it, to `path`.data.

        max_tokens: places of the cache, and positions that the front can reach. layers: those of
        one segment (None: all). A segment behind the first one takes `rows`, float32 [1, T, D],
        instead of tokens. max_positions: positions are an input and reach so far; 0: they are
        places in the cache. Raises ModelError for weights that are not finite with these bits.
        """
        layers = range(self.split) if layers is None else layers
        narrowest = min([bits.head, *bits.layers])
        fits = torch.float16 if narrowest == 16 else torch.float32
        with WeightFile(path.with_name(f"{path.name}.data"), str(self._source.place)) as store:
            graph = Graph(store)
            shape: list[int | str] = [1, "num_tokens", self._form.hidden_size]
            if layers.start:
                rows = graph.input(ROWS_INPUT, TensorProto.FLOAT, shape)
            else:
                rows = embedding(
                    graph,
                    store,
                    embedding_rows(self._source, fits),
                    bits=narrowest,
                    factor=self._form.embedding_factor,
                )
            matrices = StoredMatrices(
                store,
                self.found.importance,
                accuracy_level=bits.accuracy_level,
                blocks=bits.blocks,
                kept=self._kept,
            )
            stream = Residual(rows, zeros_like(graph, rows) if layers.start else None)
            if layers:
                writer = self._writer(graph, matrices, bits, max_tokens, layers, max_positions)
                stream = self._layers(writer, stream, matrices, bits, fits, layers)
            if layers.stop == len(self._form.layers):
                matrices.bits = bits.head
                self._head(graph, stream, matrices, fits)
            else:
                sum_of(graph, stream, "/residual/Add", "hidden_states")
                graph.output("hidden_states", TensorProto.FLOAT, shape, first=True)
        model = graph.model()
        onnx.helper.set_model_props(model, {KEY_CHANNELS: ",".join(map(str, self._key_channels))})
        onnx.save(model, path)

    @property
    def _key_channels(self) -> tuple[int, ...]:
        """See HeadLayout: whoever reads the cache learns from the file where channels lie."""
        return self._form.layout.rotated_order

    def _writer(
        self,
        graph: Graph,
        matrices: StoredMatrices,
        bits: FrontBits,
        max_tokens: int,
        layers: range,
        max_positions: int,
    ) -> LayerWriter:
        declare_step(graph)
        tables = self._tables(graph, bits.cache, max(max_tokens, max_positions), layers)
        return LayerWriter(
            graph,
            self._form,
            matrices,
            tables=tables,
            cache_bits=bits.cache,
            positions=declare_positions(graph) if max_positions and tables else "",
        )

    def _layers(
        self,
        writer: LayerWriter,
        stream: Residual,
        matrices: StoredMatrices,
        bits: FrontBits,
        fits: torch.dtype,
        layers: range,
    ) -> Residual:
        for index in layers:
            matrices.bits = bits.layers[index]
            scales = None
            if bits.cache == 8:
                if self.kv_scales is None:
                    raise BuildError("an 8-bit cache needs scales: the front was not tried on text")
                parts = (self.kv_scales.keys[index], self.kv_scales.values[index])
                scales = (np.array(parts[0], np.float32), np.array(parts[1], np.float32))
            weights = self._weights(index, fits)
            stream = writer.layer(self._form.layers[index], weights, stream, scales)
        return stream

    def _tables(
        self, graph: Graph, cache_bits: int, max_tokens: int, layers: range
    ) -> dict[str, tuple[str, str]]:
        """Cosines and sines of all kinds that the layers use, as weights."""
        kinds = {self._form.layers[index].rotary for index in layers} - {None}
        dtype: Any = np.float16 if cache_bits == 16 else np.float32
        tables = {}
        for kind in sorted(kind for kind in kinds if kind is not None):
            cos, sin = self._form.rotary.table(kind, max_tokens, self._form.layout)
            suffix = f".{kind}" if kind else ""
            tables[kind] = (
                graph.weight(f"cos_cache{suffix}", cos.numpy().astype(dtype)),
                graph.weight(f"sin_cache{suffix}", sin.numpy().astype(dtype)),
            )
        return tables

    def _head(
        self, graph: Graph, stream: Residual, matrices: StoredMatrices, fits: torch.dtype
    ) -> None:
        """Logits of the last row."""
        form = self._form
        norm = self._final_norm(fits)
        rows, _ = normed_stream(graph, stream, norm, "/model/final_norm", "model.final_norm")
        last = graph.constant([-1], "last_row")
        row = graph.node("Gather", [rows, last], "/lm_head/prune/Gather", axis=1)
        source = self._source
        value = matrices.product(
            graph, row, HEAD_NODE, LayerMatrix(lambda: head_rows(source, fits))
        )
        bias = head_bias(source)
        if bias is not None:
            value = graph.node("Add", [value, graph.weight("lm_head.bias", bias)], "/lm_head/Add")
        if form.logits_divisor is not None:
            divisor = graph.constant(form.logits_divisor, "logits_divisor")
            value = graph.node("Div", [value, divisor], "/lm_head/scale/Div")
        if form.logits_cap is not None:
            cap = graph.constant(form.logits_cap, "logits_cap")
            value = graph.node("Div", [value, cap], "/lm_head/softcap/Div")
            value = graph.node("Tanh", [value], "/lm_head/softcap/Tanh")
            value = graph.node("Mul", [value, cap], "/lm_head/softcap/Mul")
        graph.node("Identity", [value], "/lm_head/logits", out=["logits"])
        graph.output("logits", TensorProto.FLOAT, [1, 1, form.vocab_size], first=True)

    def _final_norm(self, fits: torch.dtype) -> Any:
        form = self._form
        name = f"{form.prefix}.{form.family.final_norm}"
        return stream_norm(self._source, form, name, fits)

    def _tried_head(self, leaving: torch.Tensor, count: int) -> torch.Tensor:
        """Logits [N, V] in float32 after the last N of `count` tokens; the head is tried in 16 bits
        on all rows [T, D]. It is widened a part at a time."""
        normed = apply_norm(leaving, self._final_norm(torch.float32))
        last = normed[:count][-(TRIED_ALONE + 1) :]
        head, parts = head_rows(self._source, torch.float32), []
        for part in head.split(max(1, PART_WEIGHTS // head.shape[1])):
            matrix = part.float().T
            parts.append(last @ matrix)
            if self.found.halves is not None:
                self.found.halves.look_at({HEAD_NODE: (normed.numpy(), matrix.numpy())})
        bias, form = head_bias(self._source), self._form
        logits = torch.cat(parts, dim=-1) + (0.0 if bias is None else torch.from_numpy(bias))
        if form.logits_divisor is not None:
            logits = logits / form.logits_divisor
        if form.logits_cap is not None:
            logits = form.logits_cap * torch.tanh(logits / form.logits_cap)
        return logits

    def _weights(self, layer: int, fits: torch.dtype) -> LayerWeights:
        return LayerWeights(self._source, self._form, layer, fits)


def empty_cache_inputs(
    session: Any, geometry: ModelGeometry, token_ids: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """Inputs of a front that reads `token_ids` int64 [T] from an empty cache."""
    inputs = {"input_ids": token_ids[None], **step_inputs(len(token_ids))}
    for value in session.get_inputs():
        if value.name.startswith("past_key_values."):
            kind = np.int8 if value.type == "tensor(int8)" else np.float32
            shape = (1, geometry.num_kv_heads, 0, geometry.device_head_dim)
            inputs[value.name] = np.zeros(shape, dtype=kind)
    return inputs


def _fits_small_alone(matrix: LayerMatrix, bits: int, *, is_down: bool) -> bool:
    grid = matrix.grid()
    if grid is None or grid.bits != bits:
        return False
    wanted = block_size("large", bits, is_down=is_down, inputs=grid.codes.shape[1])
    return taken_over(grid, wanted).block < wanted

"""Products with matrices as nodes: float32 inputs of a probe, or weights with the plan's bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto
from torch import Tensor

from optimizer.artifacts.plan import WeightBlocks
from optimizer.cost.front_kernels import EXPERT_BLOCK, block_size
from optimizer.errors import ModelError
from optimizer.export.front.blocks import CONTRIB, Graph
from optimizer.export.front.expert_node import Experts, expert_node
from optimizer.export.front.layer_weights import LayerMatrix
from optimizer.export.front.rounding import RoundedMatrix, round_rows, taken_over

F32 = npt.NDArray[np.float32]
MEAN_SQUARE_SUFFIX: Final = ".mean_square"
DOWN_NODE: Final = "/mlp/down_proj/MatMul"
PART_WEIGHTS: Final = 1 << 24  # weights that are widened at once: 64 MiB


class PartStore(Protocol):
    """A `WeightStore` that also takes weights in parts."""

    def put(self, name: str, values: npt.NDArray[Any]) -> onnx.TensorProto:
        """See WeightStore."""

    def put_parts(
        self, name: str, dtype: Any, shape: Sequence[int], parts: Iterator[npt.NDArray[Any]]
    ) -> onnx.TensorProto:
        """Values that come in parts along the first axis."""


class ProbeMatrices:
    """Matrices as float32 inputs of the graph, so that no session copies them.

    values: [K, N] by the input's name. sources: the name of what each matrix multiplies, by node.
    """

    def __init__(self) -> None:
        self.values: dict[str, F32] = {}
        self.sources: dict[str, str] = {}

    def product(self, graph: Graph, rows: str, name: str, matrix: LayerMatrix) -> str:
        """See Matrices."""
        weight = np.ascontiguousarray(matrix.read().float().numpy().T)
        held = weight_name(name)
        self.values[held] = weight
        self.sources[name] = rows
        graph.input(held, TensorProto.FLOAT, weight.shape)
        return graph.node("MatMul", [rows, held], name)

    def experts(self, graph: Graph, rows: str, scores: str, experts: Experts) -> str:
        """See Matrices."""
        names = []
        for part, read in (("up", experts.up), ("down", experts.down)):
            held = weight_name(f"{experts.name}/{part}")
            values = np.ascontiguousarray(read().float().numpy())
            self.values[held] = values
            names.append(graph.input(held, TensorProto.FLOAT, values.shape))
        self.sources[f"{experts.name}/up"] = rows
        up_bias, down_bias = experts.biases(graph)
        inputs = [rows, scores, names[0], up_bias, names[1], down_bias]
        return expert_node(graph, "MoE", inputs, experts)

    def add_rows(self, graph: Graph) -> list[str]:
        """Outputs with the rows that products multiply. Returns their names."""
        return [
            graph.output(rows, TensorProto.FLOAT, [1, "num_tokens", "channels"])
            for rows in sorted({self.sources[name] for name in self.products})
        ]

    @property
    def products(self) -> list[str]:
        """The nodes whose matrices are plain ones; not those of experts."""
        return [name for name in self.sources if name.endswith("/MatMul")]

    def add_mean_squares(self, graph: Graph) -> None:
        """Outputs with the mean square [K] of each distinct input of the matrices."""
        axes = graph.constant([0, 1], "importance.axes")
        for rows in sorted(set(self.sources.values())):
            squares = graph.node("Mul", [rows, rows], f"{rows}.square")
            out = graph.output(rows + MEAN_SQUARE_SUFFIX, TensorProto.FLOAT, ["channels"])
            graph.node("ReduceMean", [squares, axes], f"{rows}.mean", out=[out], keepdims=0)


class StoredMatrices:
    """Matrices as weights of the graph at some number of bits.

    store: where they go. importance: mean square [K] of each matrix's input, by node.
    accuracy_level: MatMulNBits' attribute, what the kernels compute in. blocks: the plan's. kept: a
    folder for rounded matrices that other fronts of the same model will use, None: they are made
    once.
    """

    def __init__(
        self,
        store: PartStore,
        importance: Mapping[str, F32],
        *,
        accuracy_level: int,
        blocks: WeightBlocks = "small",
        kept: Path | None = None,
    ) -> None:
        self.bits = 32
        self._blocks = blocks
        self._store = store
        self._importance = importance
        self._accuracy_level = accuracy_level
        self._kept = kept

    def product(self, graph: Graph, rows: str, name: str, matrix: LayerMatrix) -> str:
        """See Matrices. `bits` says at how many.

        A matrix that the checkpoint holds on such a grid is taken over: rounding it again would
        lose what the grid holds.
        """
        if self.bits > 8:
            return self._plain(graph, rows, name, matrix.read())
        rounded, inputs = self._rounded(name, matrix)
        held = weight_name(name)
        parts = {"codes": rounded.codes, "scales": rounded.scales, "zeros": rounded.zeros}
        weights = [
            graph.weight(f"{held}.{part}", values.numpy())
            for part, values in parts.items()
            if values is not None
        ]
        return graph.node(
            "MatMulNBits",
            [rows, *weights],
            name,
            domain=CONTRIB,
            K=inputs,
            N=rounded.codes.shape[0],
            bits=rounded.bits,
            block_size=rounded.block,
            accuracy_level=self._accuracy_level,
        )

    def experts(self, graph: Graph, rows: str, scores: str, experts: Experts) -> str:
        """See Matrices."""
        up_bias, down_bias = experts.biases(graph)
        if self.bits > 8:
            up = self._plain_experts(graph, f"{experts.name}/up", experts.up())
            down = self._plain_experts(graph, f"{experts.name}/down", experts.down())
            return expert_node(graph, "MoE", [rows, scores, up, up_bias, down, down_bias], experts)
        first = self._rounded_experts(graph, f"{experts.name}/up", experts.up)
        last = self._rounded_experts(graph, f"{experts.name}/down", experts.down)
        inputs = [rows, scores, *first[:2], up_bias, *last[:2], down_bias, "", "", ""]
        inputs += [first[2], last[2]]
        if not experts.form.normalized:
            # The kernel divides the chosen shares by their sum, unless it is given the shares.
            shares = graph.node("Softmax", [scores], f"{experts.name}/Softmax", axis=-1)
            inputs += ["", shares]
        return expert_node(
            graph,
            "QMoE",
            inputs,
            experts,
            expert_weight_bits=self.bits,
            block_size=EXPERT_BLOCK,
            accuracy_level=self._accuracy_level,
        )

    def _plain_experts(self, graph: Graph, name: str, matrices: Tensor) -> str:
        """[E, N, K] in float32, or in float16 widened at load."""
        dtype: Any = np.float32 if self.bits == 32 else np.float16
        held = weight_name(name)
        stored = held if self.bits == 32 else f"{held}.float16"
        parts = (_narrowed(one[None], dtype) for one in matrices)
        tensor = graph.add(self._store.put_parts(stored, dtype, tuple(matrices.shape), parts))
        if self.bits == 32:
            return tensor
        out = [f"{held}.float32"]
        return graph.node("Cast", [tensor], f"{name}/Cast", out=out, to=TensorProto.FLOAT)

    def _rounded_experts(
        self, graph: Graph, name: str, read: Callable[[], Tensor]
    ) -> tuple[str, str, str]:
        """Names of codes [E, N, .], scales and zero points ("": none) of matrices [E, N, K].

        Inputs of the matrices that go down are inside the node and were not seen: all count alike.
        At 8 bits ONNX Runtime packs constant weights into fewer digits (results move by 1 %), so
        they are declared as inputs with a default, which it takes as they are.
        """
        matrices = read()
        count, outputs, inputs = matrices.shape
        if inputs % EXPERT_BLOCK:
            raise ModelError(
                f"{name}: experts of {inputs} inputs, not a multiple of {EXPERT_BLOCK}"
            )
        seen = self._importance.get(name)
        importance = torch.ones(inputs) if seen is None else torch.from_numpy(seen)
        rounded = self._kept_or(
            name,
            EXPERT_BLOCK,
            lambda: round_rows(matrices.reshape(-1, inputs), importance, self.bits, EXPERT_BLOCK),
        )
        held = weight_name(name)
        names = []
        for part, values in (
            ("codes", rounded.codes),
            ("scales", rounded.scales),
            ("zeros", rounded.zeros),
        ):
            shaped = None if values is None else values.reshape(count, outputs, -1).numpy()
            names.append("" if shaped is None else graph.weight(f"{held}.{part}", shaped))
            if self.bits == 8 and shaped is not None:
                graph.make_overridable(names[-1])
        return names[0], names[1], names[2]

    def _plain(self, graph: Graph, rows: str, name: str, matrix: Tensor) -> str:
        """A product in float32. At 16 bits the file holds float16, which ONNX Runtime widens once
        at load: half the download, but the memory of 32 bits."""
        outputs, inputs = matrix.shape
        dtype: Any = np.float32 if self.bits == 32 else np.float16
        step = max(1, PART_WEIGHTS // outputs)
        columns = (_narrowed(matrix[:, k : k + step].T, dtype) for k in range(0, inputs, step))
        held = weight_name(name)
        if self.bits == 32:
            tensor = self._store.put_parts(held, dtype, (inputs, outputs), columns)
            return graph.node("MatMul", [rows, graph.add(tensor)], name)
        narrow = f"{held}.float16"
        tensor = self._store.put_parts(narrow, dtype, (inputs, outputs), columns)
        wide = graph.node(
            "Cast",
            [graph.add(tensor)],
            f"{name}/Cast",
            out=[f"{held}.float32"],
            to=TensorProto.FLOAT,
        )
        return graph.node("MatMul", [rows, wide], name)

    def _rounded(self, name: str, matrix: LayerMatrix) -> tuple[RoundedMatrix, int]:
        importance = torch.from_numpy(self._importance[name])
        is_down = name.endswith(DOWN_NODE)
        block = block_size(self._blocks, self.bits, is_down=is_down, inputs=len(importance))

        def made() -> RoundedMatrix:
            grid = matrix.grid()
            if grid is not None and grid.bits == self.bits:
                return taken_over(grid, block)
            return round_rows(matrix.read(), importance, self.bits, block)

        return self._kept_or(name, block, made), len(importance)

    def _kept_or(self, name: str, block: int, make: Callable[[], RoundedMatrix]) -> RoundedMatrix:
        """The rounded matrix that another front of this model has made, or a new one."""
        if self._kept is None:
            return make()
        path = self._kept / f"{weight_name(name)}.{self.bits}.{block}.pt"
        if not path.exists():
            rounded = make()
            torch.save([rounded.codes, rounded.scales, rounded.zeros], path)
        codes, scales, zeros = torch.load(path, mmap=True)
        block = codes.shape[-1] * 8 // self.bits  # of a checkpoint's own grid it may be smaller
        return RoundedMatrix(bits=self.bits, block=block, codes=codes, scales=scales, zeros=zeros)


def weight_name(node: str) -> str:
    """The weight's name of a node, such as model.layers.0.attn.o_proj.MatMul.weight."""
    return node.strip("/").replace("/", ".") + ".weight"


def _narrowed(part: Tensor, dtype: Any) -> npt.NDArray[Any]:
    """Float numbers of another type; too large ones become infinite, which the store refuses."""
    with np.errstate(over="ignore"):
        narrowed: npt.NDArray[Any] = part.float().numpy().astype(dtype)
    return narrowed

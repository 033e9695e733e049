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

from optimizer.export.front.blocks import CONTRIB, Graph
from optimizer.export.front.rounding import BLOCK_SIZE, RoundedMatrix, round_rows

F32 = npt.NDArray[np.float32]
MEAN_SQUARE_SUFFIX: Final = ".mean_square"
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

    def product(self, graph: Graph, rows: str, name: str, read: Callable[[], Tensor]) -> str:
        """See Matrices."""
        weight = np.ascontiguousarray(read().float().numpy().T)
        held = weight_name(name)
        self.values[held] = weight
        self.sources[name] = rows
        graph.input(held, TensorProto.FLOAT, weight.shape)
        return graph.node("MatMul", [rows, held], name)

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
    accuracy_level: MatMulNBits' attribute, what the kernels compute in. kept: a folder for rounded
    matrices that other fronts of the same model will use, None: they are made once.
    """

    def __init__(
        self,
        store: PartStore,
        importance: Mapping[str, F32],
        *,
        accuracy_level: int,
        kept: Path | None = None,
    ) -> None:
        self.bits = 32
        self._store = store
        self._importance = importance
        self._accuracy_level = accuracy_level
        self._kept = kept

    def product(self, graph: Graph, rows: str, name: str, read: Callable[[], Tensor]) -> str:
        """See Matrices. `bits` says at how many."""
        if self.bits > 8:
            return self._plain(graph, rows, name, read())
        rounded, inputs = self._rounded(name, read)
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
            block_size=BLOCK_SIZE,
            accuracy_level=self._accuracy_level,
        )

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

    def _rounded(self, name: str, read: Callable[[], Tensor]) -> tuple[RoundedMatrix, int]:
        importance = torch.from_numpy(self._importance[name])
        if self._kept is None:
            return round_rows(read(), importance, self.bits), len(importance)
        path = self._kept / f"{weight_name(name)}.{self.bits}.pt"
        if not path.exists():
            rounded = round_rows(read(), importance, self.bits)
            torch.save([rounded.codes, rounded.scales, rounded.zeros], path)
        codes, scales, zeros = torch.load(path, mmap=True)
        return (
            RoundedMatrix(bits=self.bits, codes=codes, scales=scales, zeros=zeros),
            len(importance),
        )


def weight_name(node: str) -> str:
    """The weight's name of a node, such as model.layers.0.attn.o_proj.MatMul.weight."""
    return node.strip("/").replace("/", ".") + ".weight"


def _narrowed(part: Tensor, dtype: Any) -> npt.NDArray[Any]:
    """Float numbers of another type; too large ones become infinite, which the store refuses."""
    with np.errstate(over="ignore"):
        narrowed: npt.NDArray[Any] = part.float().numpy().astype(dtype)
    return narrowed

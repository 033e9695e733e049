"""The embedding's look-up in a front, and its storage in fewer bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from onnx import TensorProto
from torch import Tensor

from optimizer.export.front.blocks import CONTRIB, Graph
from optimizer.export.front.matrices import PART_WEIGHTS, PartStore

BLOCK_SIZE: Final = 32
# Below 16 bits the embedding gets 8. A token reads one row of it, so 4 bits would save no time, and
# the embedding's error reaches every layer.
EMBEDDING_BITS: Final = 8
NAME: Final = "model.embed_tokens.weight"
NODE: Final = "/model/embed_tokens/Gather"


def embedding(
    graph: Graph, store: PartStore, rows: Tensor, *, bits: int, factor: float | None
) -> str:
    """input_ids int64 [1, T] -> rows float32 [1, T, D]; returns the rows' name.

    rows: the embedding [V, D] in its stored type, widened a part at a time. bits: of the front.
    factor: on the rows, None: none. Rows that do not divide into blocks of 32 get 16 bits, not 8.
    """
    ids = graph.input("input_ids", TensorProto.INT64, [1, "num_tokens"])
    if bits == 32:
        tensor = store.put_parts(NAME, np.float32, rows.shape, _parts(rows, np.float32))
        found = graph.node("Gather", [graph.add(tensor), ids], NODE)
    elif bits == 16 or rows.shape[1] % BLOCK_SIZE:
        narrow = f"{NAME}.float16"
        tensor = store.put_parts(narrow, np.float16, rows.shape, _parts(rows, np.float16))
        found = graph.node("Gather", [graph.add(tensor), ids], NODE)
        found = graph.node("Cast", [found], f"{NODE}/Cast", to=TensorProto.FLOAT)
    else:
        found = _quantized(graph, store, rows, ids)
    if factor is None:
        return found
    scale = graph.constant(float(factor), "embedding_factor")
    return graph.node("Mul", [found, scale], "/model/embed_tokens/Mul")


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
    with np.errstate(over="ignore"):  # the store refuses scales that are not finite
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


def _parts(rows: Tensor, dtype: Any) -> Iterator[npt.NDArray[Any]]:
    """The rows in another type, some at a time."""
    for part in rows.split(max(1, PART_WEIGHTS // rows.shape[1])):
        with np.errstate(over="ignore"):  # the store refuses values that are not finite
            yield part.float().numpy().astype(dtype)


def _quantized(graph: Graph, store: PartStore, rows: Tensor, ids: str) -> str:
    scales: list[npt.NDArray[np.float32]] = []
    zeros: list[npt.NDArray[np.uint8]] = []

    def codes() -> Iterator[npt.NDArray[np.uint8]]:
        for part in _parts(rows, np.float32):
            of_part, its_scales, its_zeros = quantize_blocks(part, EMBEDDING_BITS)
            scales.append(its_scales)
            zeros.append(its_zeros)
            yield of_part

    tensor = store.put_parts(f"{NAME}.codes", np.uint8, rows.shape, codes())
    return graph.node(
        "GatherBlockQuantized",
        [
            graph.add(tensor),
            ids,
            graph.weight(f"{NAME}.scales", np.concatenate(scales)),
            graph.weight(f"{NAME}.zeros", np.concatenate(zeros)),
        ],
        NODE,
        domain=CONTRIB,
        gather_axis=0,
        quantize_axis=1,
        block_size=BLOCK_SIZE,
        bits=EMBEDDING_BITS,
    )

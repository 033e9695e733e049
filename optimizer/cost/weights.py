"""Bytes of weights by layer and precision, as the front's and the back's formats store them.

Source: arXiv:2511.04002, M = sum over front layers of B_w(i; Q_w1) + sum over back layers of
B_w(j; Q_w2). B_w itself is ours, from the formats: the front's are in `front_kernels.py`; in the
back 8 bits have one fp32 scale a row. Norms and biases stay fp32.

These are bytes on disk, and the bytes that a step reads. What the process needs in memory is more:
see `optimizer.cost.memory`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from optimizer.artifacts.geometry import ModelGeometry
from optimizer.artifacts.plan import WeightBlocks
from optimizer.cost.front_kernels import EXPERT_BLOCK, SCALE_BYTES, block_size, front_kernel

FP32_BYTES: Final = 4


class Matrix(NamedTuple):
    """One weight matrix of a layer: [inputs, outputs]."""

    name: str
    inputs: int
    outputs: int

    @property
    def num_weights(self) -> int:
        """inputs * outputs."""
        return self.inputs * self.outputs


def layer_matrices(geometry: ModelGeometry) -> tuple[Matrix, ...]:
    """The matrices of one decoder layer that a row goes through, as the front runs them.

    q, k and v are packed into one. Of experts, those that a token is sent to: a step of few rows
    reads few more. `stored_layer_weights` counts all of them.
    """
    width, inner = geometry.hidden_size, geometry.intermediate_size
    heads = geometry.num_heads * geometry.head_dim
    packed = heads + 2 * geometry.num_kv_heads * geometry.head_dim
    attention = (Matrix("qkv", width, packed), Matrix("o", heads, width))
    if not geometry.num_experts:
        return (*attention, *_mlp(geometry, inner))
    router = Matrix("router", width, geometry.num_experts)
    chosen = _mlp(geometry, geometry.expert_size) * geometry.experts_per_token
    return (*attention, router, *chosen)


def stored_layer_weights(geometry: ModelGeometry) -> int:
    """Weights in the matrices of one decoder layer, all experts counted."""
    weights = sum(matrix.num_weights for matrix in layer_matrices(geometry))
    resting = geometry.num_experts - geometry.experts_per_token
    return weights + resting * sum(m.num_weights for m in _mlp(geometry, geometry.expert_size))


def back_layer_matrices(geometry: ModelGeometry) -> tuple[Matrix, ...]:
    """The matrices of `layer_matrices` as the server runs them: gate and up in one, too."""
    joined: list[Matrix] = []
    for matrix in layer_matrices(geometry):
        if matrix.name == "gate":
            joined.append(Matrix("gate_up", matrix.inputs, 2 * matrix.outputs))
        elif matrix.name != "up" or not geometry.gated_mlp:
            joined.append(matrix)
    return tuple(joined)


def _mlp(geometry: ModelGeometry, inner: int) -> tuple[Matrix, ...]:
    width = geometry.hidden_size
    gate = (Matrix("gate", width, inner),) if geometry.gated_mlp else ()
    return (*gate, Matrix("up", width, inner), Matrix("down", inner, width))


def head_matrix(geometry: ModelGeometry) -> Matrix:
    """The output head, D to the vocabulary."""
    return Matrix("head", geometry.hidden_size, geometry.vocab_size)


def layer_vector_bytes(geometry: ModelGeometry) -> int:
    """fp32 norms (two of D), and q, k, v biases where the model has them."""
    packed = (geometry.num_heads + 2 * geometry.num_kv_heads) * geometry.head_dim
    bias = packed if geometry.attention_bias else 0
    return FP32_BYTES * (2 * geometry.hidden_size + bias)


def front_layer_bytes(geometry: ModelGeometry, bits: int) -> float:
    """B_w of one front layer at `bits`."""
    matrices = stored_layer_weights(geometry)
    return front_kernel(bits).stored_bytes(matrices) + layer_vector_bytes(geometry)


class PackedMatrix(NamedTuple):
    """Matrices of one kind as the device holds them: weights, and how many share a scale."""

    num_weights: int
    block: int


def packed_layer(
    geometry: ModelGeometry, bits: int, blocks: WeightBlocks
) -> Iterator[PackedMatrix]:
    """What a front's layer of `bits` is in memory, all experts counted.

    A router is in float32, and so small that it counts as the others.
    """
    for matrix in layer_matrices(geometry):
        if geometry.num_experts and matrix.name in ("gate", "up", "down"):
            continue
        is_down = matrix.name == "down"
        block = block_size(blocks, bits, is_down=is_down, inputs=matrix.inputs)
        yield PackedMatrix(matrix.num_weights, block)
    if geometry.num_experts:
        one = sum(m.num_weights for m in _mlp(geometry, geometry.expert_size))
        yield PackedMatrix(geometry.num_experts * one, EXPERT_BLOCK)


def num_front_weights(geometry: ModelGeometry, split: int) -> int:
    """Weights in the matrices of a front's layers, and in the head where it has all of them."""
    head = head_matrix(geometry).num_weights if split == geometry.num_layers else 0
    return split * stored_layer_weights(geometry) + head


def embedding_bytes(geometry: ModelGeometry, bits: int) -> float:
    """The token embedding on the edge, [vocabulary, D] with its scales, for a front of `bits`."""
    return front_kernel(bits).embedding_bytes(geometry.vocab_size * geometry.hidden_size)


def back_matrix_bytes(matrix: Matrix, bits: int) -> float:
    """Bytes of a back matrix: bits / 8 a weight; at 8 bits one fp32 scale for each output."""
    scales = SCALE_BYTES * matrix.outputs if bits == 8 else 0
    return matrix.num_weights * bits / 8 + scales


def back_weight_bytes(geometry: ModelGeometry, back_start: int, bits: int) -> float:
    """All that the cloud's files hold: layers [back_start, L), the final norm, the head, every
    matrix at `bits`."""
    layer = sum(back_matrix_bytes(matrix, bits) for matrix in layer_matrices(geometry))
    resting = geometry.num_experts - geometry.experts_per_token
    layer += resting * sum(
        back_matrix_bytes(matrix, bits) for matrix in _mlp(geometry, geometry.expert_size)
    )
    layer += layer_vector_bytes(geometry)
    head = back_matrix_bytes(head_matrix(geometry), bits)
    return (geometry.num_layers - back_start) * layer + head + FP32_BYTES * geometry.hidden_size

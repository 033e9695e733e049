"""Bytes of weights by layer kind and precision, as the front and back formats store them.

Source: arXiv:2511.04002, M = sum over front layers of B_w(i; Q_w1) + sum over back layers of
B_w(j; Q_w2); B_w itself is ours, from the formats:
4 and 8 bits in the front: blocks of 32 weights with one fp32 scale, at 4 bits a 4-bit zero point
too (MatMulNBits, and GatherBlockQuantized for the embedding); 16 and 32 bits: plain tensors.
Norms, biases and rotary tables stay fp32. 8 bits in the back: one fp32 scale a row.

These are bytes on disk, and bytes walked by a step. What the process needs in memory is more, and
is `optimizer.cost.memory`'s business.
"""

from __future__ import annotations

from typing import NamedTuple

from optimizer.artifacts.geometry import ModelGeometry

BLOCK_SIZE = 32
SCALE_BYTES = 4
FP32_BYTES = 4


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
    """The matrices of one decoder layer as the front runs them: q, k and v packed into one."""
    width, inner = geometry.hidden_size, geometry.intermediate_size
    heads = geometry.num_heads * geometry.head_dim
    packed = heads + 2 * geometry.num_kv_heads * geometry.head_dim
    return (
        Matrix("qkv", width, packed),
        Matrix("o", heads, width),
        Matrix("gate", width, inner),
        Matrix("up", width, inner),
        Matrix("down", inner, width),
    )


def back_layer_matrices(geometry: ModelGeometry) -> tuple[Matrix, ...]:
    """The matrices of one decoder layer as the server runs them: gate and up in one, too."""
    qkv, o, gate, _, down = layer_matrices(geometry)
    return (qkv, o, Matrix("gate_up", gate.inputs, 2 * gate.outputs), down)


def front_matrix_bytes(num_weights: int, bits: int) -> float:
    """Bytes of a front matrix: bits / 8 a weight, plus scales and zero points of its blocks."""
    block = {4: SCALE_BYTES + 0.5, 8: SCALE_BYTES}.get(bits, 0.0)
    return num_weights * (bits / 8 + block / BLOCK_SIZE)


def layer_vector_bytes(geometry: ModelGeometry) -> int:
    """fp32 norms (two of D), and q, k, v biases where the model has them."""
    packed = (geometry.num_heads + 2 * geometry.num_kv_heads) * geometry.head_dim
    bias = packed if geometry.attention_bias else 0
    return FP32_BYTES * (2 * geometry.hidden_size + bias)


def front_layer_bytes(geometry: ModelGeometry, bits: int) -> float:
    """B_w of one front layer at `bits`."""
    matrices = sum(matrix.num_weights for matrix in layer_matrices(geometry))
    return front_matrix_bytes(matrices, bits) + layer_vector_bytes(geometry)


def embedding_bytes(geometry: ModelGeometry, bits: int) -> float:
    """The token embedding on the edge, V x D with scales, for a front of `bits`: its own bits are
    8 where the matrices have 4 (its error reaches every layer, and one row a token is read), and
    with 8 bits it has a zero point a block, which the matrices have not."""
    weights = geometry.vocab_size * geometry.hidden_size
    zeros = weights / BLOCK_SIZE if bits <= 8 else 0.0
    return front_matrix_bytes(weights, max(bits, 8)) + zeros


def rotary_bytes(geometry: ModelGeometry) -> int:
    """cos and sin tables: two fp32 [context, head_dim / 2]."""
    return FP32_BYTES * geometry.context_length * geometry.head_dim


def front_weight_bytes(geometry: ModelGeometry, split: int, bits: int) -> float:
    """All that the edge's front holds: embedding, `split` layers, rotary tables.

    With the split at the last layer the edge holds the final norm and the head as well; a tied
    head is a matrix of its own there, because a look-up table has another layout.
    """
    total = embedding_bytes(geometry, bits) + split * front_layer_bytes(geometry, bits)
    if split:
        total += rotary_bytes(geometry)
    if split == geometry.num_layers:
        total += front_matrix_bytes(geometry.vocab_size * geometry.hidden_size, bits)
        total += FP32_BYTES * geometry.hidden_size
    return total


def back_matrix_bytes(matrix: Matrix, bits: int) -> float:
    """Bytes of a back matrix: bits / 8 a weight; at 8 bits one fp32 scale for each output."""
    scales = SCALE_BYTES * matrix.outputs if bits == 8 else 0
    return matrix.num_weights * bits / 8 + scales


def back_weight_bytes(geometry: ModelGeometry, back_start: int, bits: int) -> float:
    """All that the cloud's files hold: layers [back_start, L), the final norm, the head, every
    matrix at `bits`."""
    layer = sum(back_matrix_bytes(matrix, bits) for matrix in layer_matrices(geometry))
    layer += layer_vector_bytes(geometry)
    head = back_matrix_bytes(Matrix("head", geometry.hidden_size, geometry.vocab_size), bits)
    return (geometry.num_layers - back_start) * layer + head + FP32_BYTES * geometry.hidden_size

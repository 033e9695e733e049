"""Graphs that time one kind of kernel each, in the shapes and order a decoder layer has them.

Each builder returns a serialized ONNX model with one free dimension, the number of rows. Weights
are random with zero mean and a scale that keeps activations near 1 along the chain: denormal
numbers would slow the kernels down, and zeros would not be real work.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprofiles.profiler.onnx_writer import FLOAT, FLOAT16, INT8, INT32, INT64, GraphWriter
from hwprofiles.profiles.device import Compute

BLOCK_SIZE = 32  # weights a scale, as the front's exporter writes them
MICROSOFT = "com.microsoft"
RANDOM_VALUES = 65_521  # prime, so that repeating them fills no matrix with equal rows


def weight_bytes(num_weights: int, weight_bits: int) -> float:
    """Bytes of `num_weights` weights as the front stores them, scales included.

    Blocks of 32 with one fp32 scale; at 4 bits a 4-bit zero point as well. 16 and 32 bits: plain.
    """
    if weight_bits >= 16:
        return num_weights * weight_bits / 8
    zero_bits = 4 if weight_bits == 4 else 0
    return num_weights * (weight_bits / 8 + (4 + zero_bits / 8) / BLOCK_SIZE)


def matmul_chain(
    *, width: int, inner: int, num_pairs: int, weight_bits: int, compute: Compute
) -> bytes:
    """`num_pairs` times [rows, width] -> [rows, inner] -> [rows, width], as an MLP does.

    4 and 8 bits: MatMulNBits, with int8 activations (accuracy level 4) when `compute` is int8.
    32 bits: MatMul. 16 bits: MatMul of 16-bit numbers, rows narrowed before and widened after.
    width and inner must be multiples of 64.
    """
    rng = np.random.default_rng(0)
    graph = GraphWriter()
    graph.input("x", FLOAT, ["rows", width])
    name = "x"
    for pair in range(num_pairs):
        for depth, (rows_in, cols_out) in enumerate(((width, inner), (inner, width))):
            result = f"y{pair}_{depth}"
            _matmul(graph, rng, name, result, rows_in, cols_out, weight_bits, compute)
            name = result
    graph.node("Identity", [name], ["y"])
    graph.output("y", FLOAT, ["rows", width])
    return graph.model()


def _matmul(
    graph: GraphWriter,
    rng: np.random.Generator,
    source: str,
    result: str,
    k: int,
    n: int,
    weight_bits: int,
    compute: Compute,
) -> None:
    weight = f"{result}_w"
    if weight_bits == 32:
        limit = math.sqrt(3 / k)
        values = rng.uniform(-limit, limit, RANDOM_VALUES).astype(np.float32)
        graph.constant(weight, np.resize(values, (k, n)))
        graph.node("MatMul", [source, weight], [result])
        return
    if weight_bits == 16:
        limit = math.sqrt(3 / k)
        values = rng.uniform(-limit, limit, RANDOM_VALUES).astype(np.float16)
        half_product(graph, source, result, np.resize(values, (k, n)))
        return
    blocks = k // BLOCK_SIZE
    codes, deviation = _codes(rng, weight_bits)
    graph.constant(weight, np.resize(codes, (n, blocks, BLOCK_SIZE * weight_bits // 8)))
    scales = np.full((n, blocks), 1 / (deviation * math.sqrt(k)), dtype=np.float32)
    graph.constant(f"{result}_s", scales)
    operands = [source, weight, f"{result}_s"]
    if weight_bits == 4:  # zero points, packed in pairs; 8 is the middle code
        graph.constant(f"{result}_z", np.full((n, blocks // 2), 0x88, dtype=np.uint8))
        operands.append(f"{result}_z")
    graph.node(
        "MatMulNBits",
        operands,
        [result],
        domain=MICROSOFT,
        K=k,
        N=n,
        bits=weight_bits,
        block_size=BLOCK_SIZE,
        accuracy_level=4 if compute == "int8" else 1,
    )


def half_product(graph: GraphWriter, source: str, result: str, matrix: NDArray[np.float16]) -> None:
    """Rows times a matrix [K, N] in 16 bits; the rows come and the product goes in 32 bits."""
    graph.constant(f"{result}_w", matrix)
    graph.node("Cast", [source], [f"{result}_in"], to=FLOAT16)
    graph.node("MatMul", [f"{result}_in", f"{result}_w"], [f"{result}_out"])
    graph.node("Cast", [f"{result}_out"], [result], to=FLOAT)


def _codes(rng: np.random.Generator, weight_bits: int) -> tuple[NDArray[np.uint8], float]:
    """Zero-mean random codes (the lowest code left out), and their standard deviation."""
    start = int(rng.integers(RANDOM_VALUES))
    deviation = math.sqrt(((255 if weight_bits == 8 else 15) ** 2 - 1) / 12)
    return np.roll(_drawn_codes(weight_bits), start), deviation


@functools.cache
def _drawn_codes(weight_bits: int) -> NDArray[np.uint8]:
    """What all matrices begin at different places of: drawing anew takes as long as timing."""
    rng = np.random.default_rng(0)
    if weight_bits == 8:
        return rng.integers(1, 256, RANDOM_VALUES, dtype=np.uint8)
    halves = rng.integers(1, 16, (2, RANDOM_VALUES), dtype=np.uint8)
    return np.asarray(halves[0] | halves[1] << 4, dtype=np.uint8)


def lookup(*, width: int, num_rows: int, weight_bits: int) -> bytes:
    """The embedding's look-up in a table [num_rows, width] of `weight_bits`: Gather for 16 and 32
    bits, GatherBlockQuantized below."""
    rng = np.random.default_rng(0)
    graph = GraphWriter()
    graph.input("ids", INT64, [1, "rows"])
    if weight_bits == 32:
        graph.constant("table", np.ones((num_rows, width), dtype=np.float32))
        graph.node("Gather", ["table", "ids"], ["y"])
    elif weight_bits == 16:
        graph.constant("table", np.ones((num_rows, width), dtype=np.float16))
        graph.node("Gather", ["table", "ids"], ["found"])
        graph.node("Cast", ["found"], ["y"], to=FLOAT)
    else:
        codes, _ = _codes(rng, weight_bits)
        graph.constant("table", np.resize(codes, (num_rows, width * weight_bits // 8)))
        blocks = width // BLOCK_SIZE
        graph.constant("scales", np.full((num_rows, blocks), 0.01, dtype=np.float32))
        zero_bytes = blocks * weight_bits // 8
        zero = 0x88 if weight_bits == 4 else 0x80
        graph.constant("zeros", np.full((num_rows, zero_bytes), zero, dtype=np.uint8))
        graph.node(
            "GatherBlockQuantized",
            ["table", "ids", "scales", "zeros"],
            ["y"],
            domain=MICROSOFT,
            gather_axis=0,
            quantize_axis=1,
            block_size=BLOCK_SIZE,
            bits=weight_bits,
        )
    graph.output("y", FLOAT, [1, "rows", width])
    return graph.model()


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLayers:
    """The shape of whole decoder layers: width D, the MLP's inner width, heads, and how weights
    are stored and computed."""

    width: int
    inner: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_layers: int
    weight_bits: int
    compute: Compute


def decoder_stack(layers: DecoderLayers) -> bytes:
    """Whole decoder layers in the front's order: norm, qkv, attention, o, norm, gated MLP.

    Inputs: x [1, rows, width], lengths and caches as in `attention_stack` (32-bit).
    """
    rng = np.random.default_rng(0)
    graph = GraphWriter()
    graph.input("x", FLOAT, [1, "rows", layers.width])
    graph.input("past_length", INT32, [1])
    graph.input("total_length", INT32, [])
    _rotary(graph, layers.head_dim, np.float32)
    graph.constant("gain", np.ones(layers.width, dtype=np.float32))
    heads = layers.num_heads * layers.head_dim
    packed = heads + 2 * layers.num_kv_heads * layers.head_dim
    cache_shape: list[int | str] = [1, layers.num_kv_heads, "capacity", layers.head_dim]
    residual, update = "x", "x"
    for layer in range(layers.num_layers):

        def name(part: str, layer: int = layer) -> str:
            return f"{part}_{layer}"

        def matmul(source: str, part: str, k: int, n: int, layer: int = layer) -> str:
            _matmul(graph, rng, source, f"{part}_{layer}", k, n, layers.weight_bits, layers.compute)
            return f"{part}_{layer}"

        def norm(part: str, addends: list[str], layer: int = layer) -> str:
            graph.node(
                "SkipSimplifiedLayerNormalization",
                [*addends, "gain"],
                [f"{part}_{layer}", "", "", f"{part}_sum_{layer}"],
                domain=MICROSOFT,
                epsilon=1e-5,
            )
            return f"{part}_{layer}"

        qkv = matmul(norm("first", [residual, update]), "qkv", layers.width, packed)
        residual = name("first_sum")
        _cache(graph, layer, FLOAT, cache_shape)
        _attention(
            graph, layer, qkv, layers.num_heads, layers.num_kv_heads, layers.head_dim, [], {}
        )
        update = matmul(name("out"), "o", heads, layers.width)
        normed = norm("second", [residual, update])
        residual = name("second_sum")
        gate = matmul(normed, "gate", layers.width, layers.inner)
        up = matmul(normed, "up", layers.width, layers.inner)
        graph.node("Sigmoid", [gate], [name("sigmoid")])
        graph.node("Mul", [gate, name("sigmoid")], [name("silu")])
        graph.node("Mul", [name("silu"), up], [name("gated")])
        update = matmul(name("gated"), "down", layers.inner, layers.width)
    graph.node("Add", [residual, update], ["y"])
    graph.output("y", FLOAT, [1, "rows", layers.width])
    return graph.model()


def _rotary(graph: GraphWriter, head_dim: int, kind: type[np.floating[Any]]) -> None:
    angles = np.outer(np.arange(4096), 1e4 ** -(np.arange(head_dim // 2) / (head_dim // 2)))
    graph.constant("cos", np.cos(angles).astype(kind))
    graph.constant("sin", np.sin(angles).astype(kind))


def _cache(graph: GraphWriter, layer: int, element: int, cache_shape: Sequence[int | str]) -> None:
    for part in ("key", "value"):
        graph.input(f"past_{part}_{layer}", element, cache_shape)
        graph.output(f"present_{part}_{layer}", element, cache_shape)


def _attention(
    graph: GraphWriter,
    layer: int,
    qkv: str,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    scales: list[str],
    extra: dict[str, int | float | str],
) -> None:
    cache = [f"past_key_{layer}", f"past_value_{layer}"]
    lengths = ["past_length", "total_length"]
    graph.node(
        "GroupQueryAttention",
        [qkv, "", "", *cache, *lengths, "cos", "sin", "", "", "", *scales],
        [f"out_{layer}", f"present_key_{layer}", f"present_value_{layer}"],
        domain=MICROSOFT,
        num_heads=num_heads,
        kv_num_heads=num_kv_heads,
        scale=head_dim**-0.5,
        do_rotary=1,
        **extra,
    )


def attention_stack(
    *, num_heads: int, num_kv_heads: int, head_dim: int, num_layers: int, kv_bits: int
) -> bytes:
    """`num_layers` GroupQueryAttention operators, each with its own cache, rotary included.

    Inputs: qkv [1, rows, (heads + 2 kv_heads) * head_dim]; past_key_i, past_value_i
    [1, kv_heads, capacity, head_dim]; past_length [1] int32 (tokens present after this step,
    less one); total_length scalar int32. 8 bits: one scale a channel, the scheme the CPU has.
    """
    graph = GraphWriter()
    element = {8: INT8, 16: FLOAT16, 32: FLOAT}[kv_bits]
    outer = FLOAT16 if kv_bits == 16 else FLOAT
    packed = (num_heads + 2 * num_kv_heads) * head_dim
    graph.input("qkv", outer, [1, "rows", packed])
    graph.input("past_length", INT32, [1])
    graph.input("total_length", INT32, [])
    _rotary(graph, head_dim, np.float16 if kv_bits == 16 else np.float32)
    extra: dict[str, int | float | str] = {}
    scales: list[str] = []
    if kv_bits == 8:
        extra = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
        extra["kv_cache_bit_width"] = 8
        scale = np.full((1, num_kv_heads, 1, head_dim), 0.02, dtype=np.float32)
        graph.constant("kv_scale", scale)
        scales = ["kv_scale", "kv_scale"]
    cache_shape: list[int | str] = [1, num_kv_heads, "capacity", head_dim]
    for layer in range(num_layers):
        _cache(graph, layer, element, cache_shape)
        _attention(graph, layer, "qkv", num_heads, num_kv_heads, head_dim, scales, extra)
        graph.output(f"out_{layer}", outer, [1, "rows", num_heads * head_dim])
    return graph.model()


def step_skeleton() -> bytes:
    """What a forward pass does outside its layers: token look-up, sequence lengths, the sum."""
    graph = GraphWriter()
    graph.input("ids", INT64, [1, "rows"])
    graph.input("past_length", INT32, [1])
    graph.input("total_length", INT32, [])
    graph.constant("table", np.ones((1024, 512), dtype=np.float32))
    graph.node("Gather", ["table", "ids"], ["embedded"])
    graph.node("Add", ["embedded", "embedded"], ["y"])
    graph.output("y", FLOAT, [1, "rows", 512])
    return graph.model()

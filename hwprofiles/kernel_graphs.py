"""Graphs that time one kind of kernel each, in the shapes and order a decoder layer has them.

Each builder returns a serialized ONNX model with one free dimension, the number of rows. Weights
are random with zero mean and a scale that keeps activations near 1 along the chain: denormal
numbers would slow the kernels down, and zeros would not be real work.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hwprofiles.device import Compute
from hwprofiles.onnx_writer import FLOAT, FLOAT16, INT8, INT32, INT64, GraphWriter

BLOCK_SIZE = 32  # weights a scale, as the front's exporter writes them
MICROSOFT = "com.microsoft"


def weight_bytes(num_weights: int, weight_bits: int) -> float:
    """Bytes that the kernel reads for `num_weights` weights, scales included.

    4 and 8 bits: symmetric blocks of 32 with one fp32 scale. 16 and 32 bits: no scales.
    """
    scales = 4 / BLOCK_SIZE if weight_bits <= 8 else 0.0
    return num_weights * (weight_bits / 8 + scales)


def matmul_chain(
    *, width: int, inner: int, num_pairs: int, weight_bits: int, compute: Compute
) -> bytes:
    """`num_pairs` times [rows, width] -> [rows, inner] -> [rows, width], as an MLP does.

    4 and 8 bits: MatMulNBits, with int8 activations (accuracy level 4) when `compute` is int8.
    16 and 32 bits: MatMul. width and inner must be multiples of 32.
    """
    rng = np.random.default_rng(0)
    element = FLOAT16 if weight_bits == 16 else FLOAT
    graph = GraphWriter()
    graph.input("x", element, ["rows", width])
    name = "x"
    for pair in range(num_pairs):
        for depth, (rows_in, cols_out) in enumerate(((width, inner), (inner, width))):
            result = f"y{pair}_{depth}"
            _matmul(graph, rng, name, result, rows_in, cols_out, weight_bits, compute)
            name = result
    graph.node("Identity", [name], ["y"])
    graph.output("y", element, ["rows", width])
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
    if weight_bits in (16, 32):
        kind = np.float16 if weight_bits == 16 else np.float32
        limit = math.sqrt(3 / k)
        graph.constant(weight, rng.uniform(-limit, limit, (k, n)).astype(kind))
        graph.node("MatMul", [source, weight], [result])
        return
    blocks = k // BLOCK_SIZE
    codes, deviation = _codes(rng, n * blocks, weight_bits)
    graph.constant(weight, codes.reshape(n, blocks, -1))
    scales = np.full((n, blocks), 1 / (deviation * math.sqrt(k)), dtype=np.float32)
    graph.constant(f"{result}_s", scales)
    graph.node(
        "MatMulNBits",
        [source, weight, f"{result}_s"],
        [result],
        domain=MICROSOFT,
        K=k,
        N=n,
        bits=weight_bits,
        block_size=BLOCK_SIZE,
        accuracy_level=4 if compute == "int8" else 1,
    )


def _codes(
    rng: np.random.Generator, num_blocks: int, weight_bits: int
) -> tuple[NDArray[np.uint8], float]:
    """Zero-mean random codes (the lowest code left out), and their standard deviation."""
    if weight_bits == 8:
        codes = rng.integers(1, 256, (num_blocks, BLOCK_SIZE), dtype=np.uint8)
        return codes, math.sqrt((255**2 - 1) / 12)
    halves = rng.integers(1, 16, (2, num_blocks, BLOCK_SIZE // 2), dtype=np.uint8)
    return halves[0] | halves[1] << 4, math.sqrt((15**2 - 1) / 12)


def elementwise_chain(*, width: int, inner: int, num_layers: int) -> bytes:
    """The operators between matrices: two skip-norms and a gated activation a layer."""
    graph = GraphWriter()
    graph.input("x", FLOAT, ["rows", width])
    graph.input("z", FLOAT, ["rows", inner])
    graph.constant("gain", np.ones(width, dtype=np.float32))
    residual, inner_name, hidden = "x", "z", "x"
    for layer in range(num_layers):
        for half in range(2):
            hidden, total = f"h{layer}_{half}", f"r{layer}_{half}"
            graph.node(
                "SkipSimplifiedLayerNormalization",
                [residual, "x", "gain"],
                [hidden, "", "", total],
                domain=MICROSOFT,
                epsilon=1e-5,
            )
            residual = total
        graph.node("Sigmoid", [inner_name], [f"s{layer}"])
        graph.node("Mul", [inner_name, f"s{layer}"], [f"m{layer}"])
        graph.node("Mul", [f"m{layer}", "z"], [f"g{layer}"])
        inner_name = f"g{layer}"
    for name, size in ((hidden, width), (inner_name, inner)):
        graph.output(name, FLOAT, ["rows", size])
    return graph.model()


def attention_stack(
    *, num_heads: int, num_kv_heads: int, head_dim: int, num_layers: int, kv_bits: int
) -> bytes:
    """`num_layers` GroupQueryAttention operators, each with its own cache, rotary included.

    Inputs: qkv [1, rows, (heads + 2 kv_heads) * head_dim]; past_key_i, past_value_i
    [1, kv_heads, capacity, head_dim]; past_length [1] int32 (tokens present after this step,
    less one); total_length scalar int32. 8 bits: one scale a channel, the scheme the CPU has.
    """
    graph = GraphWriter()
    element = INT8 if kv_bits == 8 else FLOAT
    packed = (num_heads + 2 * num_kv_heads) * head_dim
    graph.input("qkv", FLOAT, [1, "rows", packed])
    graph.input("past_length", INT32, [1])
    graph.input("total_length", INT32, [])
    angles = np.outer(np.arange(8192), 1e4 ** -(np.arange(head_dim // 2) / (head_dim // 2)))
    graph.constant("cos", np.cos(angles).astype(np.float32))
    graph.constant("sin", np.sin(angles).astype(np.float32))
    extra: dict[str, int | float | str] = {}
    scales = ["", ""]
    if kv_bits == 8:
        extra = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
        extra["kv_cache_bit_width"] = 8
        scale = np.full((1, num_kv_heads, 1, head_dim), 0.02, dtype=np.float32)
        graph.constant("kv_scale", scale)
        scales = ["kv_scale", "kv_scale"]
    lengths = ["past_length", "total_length"]
    cache_shape: list[int | str] = [1, num_kv_heads, "capacity", head_dim]
    for layer in range(num_layers):
        key, value = f"past_key_{layer}", f"past_value_{layer}"
        graph.input(key, element, cache_shape)
        graph.input(value, element, cache_shape)
        graph.node(
            "GroupQueryAttention",
            ["qkv", "", "", key, value, *lengths, "cos", "sin", "", "", "", *scales],
            [f"out_{layer}", f"present_key_{layer}", f"present_value_{layer}"],
            domain=MICROSOFT,
            num_heads=num_heads,
            kv_num_heads=num_kv_heads,
            scale=head_dim**-0.5,
            do_rotary=1,
            **extra,
        )
        graph.output(f"out_{layer}", FLOAT, [1, "rows", num_heads * head_dim])
        graph.output(f"present_key_{layer}", element, cache_shape)
        graph.output(f"present_value_{layer}", element, cache_shape)
    return graph.model()


def step_skeleton() -> bytes:
    """What a forward pass does outside its layers: token look-up and mask lengths."""
    graph = GraphWriter()
    graph.input("ids", INT64, [1, "rows"])
    graph.input("mask", INT64, [1, "total"])
    graph.constant("table", np.ones((1024, 512), dtype=np.float32))
    graph.constant("one", np.array([1], dtype=np.int64))
    graph.constant("index", np.array(1, dtype=np.int64))
    graph.constant("axis", np.array([1], dtype=np.int64))
    graph.node("Gather", ["table", "ids"], ["y"])
    graph.node("ReduceSum", ["mask", "axis"], ["length"], keepdims=0)
    graph.node("Sub", ["length", "one"], ["past"])
    graph.node("Cast", ["past"], ["past_length"], to=INT32)
    graph.node("Shape", ["mask"], ["shape"])
    graph.node("Gather", ["shape", "index"], ["total"])
    graph.node("Cast", ["total"], ["total_length"], to=INT32)
    graph.output("y", FLOAT, [1, "rows", 512])
    graph.output("past_length", INT32, [1])
    graph.output("total_length", INT32, [])
    return graph.model()

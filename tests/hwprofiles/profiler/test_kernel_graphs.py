"""The probe graphs are valid ONNX, compute what they say, and are written without onnx."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from hwprofiles.profiler import kernel_graphs as graphs
from hwprofiles.profiler.onnx_writer import FLOAT, GraphWriter
from hwprofiles.profiles.device import Compute

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")


def run(model: bytes, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)


def test_a_written_model_reads_back_field_for_field() -> None:
    writer = GraphWriter()
    writer.input("x", FLOAT, ["rows", 3])
    writer.constant("w", np.arange(6, dtype=np.float32).reshape(3, 2))
    writer.node("MatMul", ["x", "w"], ["m"])
    writer.node("LeakyRelu", ["m"], ["y"], alpha=0.25)
    writer.output("y", FLOAT, ["rows", 2])
    model = onnx.load_model_from_string(writer.model())
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["MatMul", "LeakyRelu"]
    assert model.graph.node[1].attribute[0].f == 0.25
    weights = onnx.numpy_helper.to_array(model.graph.initializer[0])
    np.testing.assert_array_equal(weights, np.arange(6, dtype=np.float32).reshape(3, 2))
    x = np.array([[1.0, -2.0, 0.5]], dtype=np.float32)
    product = x @ weights
    expected = np.where(product > 0, product, 0.25 * product)
    np.testing.assert_allclose(run(writer.model(), {"x": x})[0], expected, rtol=1e-6)


def test_negative_and_large_numbers_survive() -> None:
    writer = GraphWriter()
    writer.input("x", FLOAT, [2, 300])
    writer.node("Softmax", ["x"], ["y"], axis=-1)
    writer.output("y", FLOAT, [2, 300])
    model = onnx.load_model_from_string(writer.model())
    assert model.graph.node[0].attribute[0].i == -1
    assert model.graph.input[0].type.tensor_type.shape.dim[1].dim_value == 300


@pytest.mark.parametrize(
    ("bits", "compute"), [(4, "int8"), (4, "fp32"), (8, "int8"), (16, "fp16"), (32, "fp32")]
)
def test_a_matrix_chain_keeps_its_activations_near_one(bits: int, compute: Compute) -> None:
    model = graphs.matmul_chain(width=64, inner=192, num_pairs=4, weight_bits=bits, compute=compute)
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    (y,) = run(model, {"x": x})
    assert y.shape == (5, 64)
    assert 0.05 < float(np.std(y)) < 20


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_matrix_multiplies_like_its_unpacked_weights(bits: int) -> None:
    model = onnx.load_model_from_string(
        graphs.matmul_chain(width=64, inner=64, num_pairs=1, weight_bits=bits, compute="fp32")
    )
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    expected = x
    for name in ("y0_0", "y0_1"):
        packed = tensors[f"{name}_w"]  # [N, blocks, bytes]
        codes = packed
        if bits == 4:
            codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(64, 2, 32)
        centred = codes.astype(np.float32) - 2 ** (bits - 1)
        weights = (centred * tensors[f"{name}_s"][..., None]).reshape(64, 64)  # [N, K]
        expected = expected @ weights.T
    (y,) = run(model.SerializeToString(), {"x": x})
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4)


def test_weight_bytes_are_the_bytes_of_the_tensors_written() -> None:
    for bits in (4, 8, 32):
        model = onnx.load_model_from_string(
            graphs.matmul_chain(width=64, inner=128, num_pairs=3, weight_bits=bits, compute="fp32")
        )
        held = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
        assert held == graphs.weight_bytes(2 * 3 * 64 * 128, bits)


@pytest.mark.parametrize("kv_bits", [8, 16, 32])
def test_the_attention_stack_runs_and_writes_its_cache(kv_bits: int) -> None:
    model = graphs.attention_stack(
        num_heads=4, num_kv_heads=2, head_dim=32, num_layers=2, kv_bits=kv_bits
    )
    kind = {8: np.int8, 16: np.float16, 32: np.float32}[kv_bits]
    outer = np.float16 if kv_bits == 16 else np.float32
    cache = np.zeros((1, 2, 16, 32), dtype=kind)
    feeds = {f"past_{part}_{layer}": cache for part in ("key", "value") for layer in (0, 1)}
    feeds["qkv"] = np.random.default_rng(0).standard_normal((1, 3, 256)).astype(outer)
    feeds["past_length"] = np.array([5], dtype=np.int32)
    feeds["total_length"] = np.array(6, dtype=np.int32)
    outputs = run(model, feeds)
    keys = outputs[1]
    assert keys.shape == (1, 2, 16, 32)
    filled = np.abs(keys.astype(np.float32)).sum(axis=(0, 1, 3)) > 0
    np.testing.assert_array_equal(np.flatnonzero(filled), [3, 4, 5])


def test_the_whole_layer_and_step_graphs_are_valid() -> None:
    stack = graphs.decoder_stack(
        graphs.DecoderLayers(
            width=64,
            inner=128,
            num_heads=2,
            num_kv_heads=1,
            head_dim=32,
            num_layers=2,
            weight_bits=4,
            compute="int8",
        )
    )
    for model in (stack, graphs.step_skeleton()):
        onnx.load_model_from_string(model)
        ort.InferenceSession(model, providers=["CPUExecutionProvider"])


def test_profiling_loads_neither_onnx_nor_torch() -> None:
    code = (
        "import sys, hwprofiles.profiler.front_profiler\n"
        "print([name for name in ('onnx', 'torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""Rounded matrices: the kernels' layout, and errors where they cost least."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from optimizer.export.front import rounding
from optimizer.export.front.rounding import RoundedMatrix, round_matrix

GENERATOR = torch.Generator().manual_seed(11)
WEIGHT = torch.randn(48, 96, generator=GENERATOR) * torch.rand(48, 1, generator=GENERATOR)
EVEN = torch.ones(96)


def widened(rounded: RoundedMatrix, inputs: int) -> torch.Tensor:
    """The matrix [N, K] that the codes stand for."""
    codes = rounded.codes.flatten(1)
    zeros = rounded.zeros
    if rounded.bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], -1).flatten(1)
        assert zeros is not None
        zeros = torch.stack([zeros & 15, zeros >> 4], -1).flatten(1)[:, : rounded.scales.shape[1]]
    middle = 128.0 if zeros is None else zeros.float().repeat_interleave(rounded.block, 1)
    scales = rounded.scales.repeat_interleave(rounded.block, 1)
    return ((codes.float() - middle) * scales)[:, :inputs]


def product_error(rounded: RoundedMatrix, weight: torch.Tensor, importance: torch.Tensor) -> float:
    """Expected squared error of the product with inputs of these mean squares, relative."""
    off = (widened(rounded, weight.shape[1]) - weight).square() * importance
    return float(off.sum() / (weight.square() * importance).sum())


def nearest_error(weight: torch.Tensor, importance: torch.Tensor) -> float:
    """The same of evenly divided ranges, nearest value, as the exporter rounds to 4 bits."""
    blocks = weight.view(-1, 32)
    low, high = blocks.amin(1, keepdim=True).clamp(max=0), blocks.amax(1, keepdim=True).clamp(min=0)
    scale = (high - low) / 15
    zero = (-low / scale).round()
    off = ((blocks / scale).round() + zero).clamp(0, 15).sub(zero) * scale - blocks
    return float(
        (off.view_as(weight).square() * importance).sum() / (weight.square() * importance).sum()
    )


def test_a_matrix_is_searched_in_parts_that_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = round_matrix(WEIGHT, EVEN, 4, 32)
    monkeypatch.setattr(rounding, "CHUNK_WEIGHTS", 5 * 96)
    parts = round_matrix(WEIGHT, EVEN, 4, 32)
    assert whole.zeros is not None
    assert parts.zeros is not None
    torch.testing.assert_close(parts.scales, whole.scales, rtol=1e-5, atol=0)
    torch.testing.assert_close(parts.codes, whole.codes, rtol=0, atol=0)
    torch.testing.assert_close(parts.zeros, whole.zeros, rtol=0, atol=0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [96, 80])  # whole blocks, and a padded one
@pytest.mark.parametrize("block", [32, 64, 128])
def test_the_kernel_reads_what_was_written(bits: int, inputs: int, block: int) -> None:
    weight = WEIGHT[:, :inputs].contiguous()
    rounded = round_matrix(weight, EVEN[:inputs], bits, block)
    parts = {"codes": rounded.codes, "scales": rounded.scales}
    if rounded.zeros is not None:
        parts["zeros"] = rounded.zeros
    node = helper.make_node(
        "MatMulNBits", ["x", *parts], ["y"], domain="com.microsoft", K=inputs, N=48, bits=bits,
        block_size=block, accuracy_level=1,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 48])],
        [numpy_helper.from_array(value.numpy(), name) for name, value in parts.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rows = np.random.default_rng(1).normal(size=(3, inputs)).astype(np.float32)
    expected = rows @ widened(rounded, inputs).T.numpy()
    np.testing.assert_allclose(session.run(None, {"x": rows})[0], expected, atol=1e-4)


def test_searching_beats_the_nearest_values() -> None:
    rounded = round_matrix(WEIGHT, EVEN, 4, 32)
    assert product_error(rounded, WEIGHT, EVEN) < 0.95 * nearest_error(WEIGHT, EVEN)


def test_errors_go_where_the_inputs_are_small() -> None:
    importance = EVEN.clone()
    importance[::8] = 400.0
    told = product_error(round_matrix(WEIGHT, importance, 4, 32), WEIGHT, importance)
    untold = product_error(round_matrix(WEIGHT, EVEN, 4, 32), WEIGHT, importance)
    assert told < 0.6 * untold


def test_weights_of_sixteen_even_steps_are_kept_exactly() -> None:
    steps = torch.randint(0, 16, (8, 64), generator=GENERATOR)
    steps[:, ::32], steps[:, 1::32] = 0, 15  # every block uses its whole range
    weight = (steps - 6).float() * 0.03
    torch.testing.assert_close(widened(round_matrix(weight, torch.ones(64), 4, 32), 64), weight)


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_without_anything_in_them_stay_so(bits: int) -> None:
    weight = WEIGHT.clone()
    weight[:, 32:64] = 0.0
    importance = EVEN.clone()
    importance[:32] = 0.0  # channels that the sample never used
    found = widened(round_matrix(weight, importance, bits, 32), 96)
    assert torch.isfinite(found).all()
    assert found[:, 32:64].abs().max() == 0.0
    assert (found[:, :32] - weight[:, :32]).abs().max() < 0.3  # half a step of the widest block

"""OpenVINO runs decoder layers as the CPU's kernels do, up to rounding, and always alike.

It needs a machine with the package onnxruntime-openvino instead of onnxruntime: `make
test-openvino` makes an environment of its own for it. Nothing here needs torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from hwprofiles.profiler.kernel_graphs import DecoderLayers, decoder_stack
from hwprofiles.profiler.provider_probe import parts_run
from hwprofiles.providers.sessions import ATTENTION, ProviderSession, open_session
from hwprofiles.providers.table import CPU, OPENVINO, ExecutionProvider

pytestmark = pytest.mark.skipif(
    OPENVINO.runtime_name not in ort.get_available_providers(),
    reason="this onnxruntime has no OpenVINO (make test-openvino)",
)
WIDTH, HEAD, ROWS, LAYERS = 128, 64, 12, 3


def opened(provider: ExecutionProvider) -> ProviderSession:
    graph = decoder_stack(
        DecoderLayers(
            width=WIDTH,
            inner=256,
            num_heads=2,
            num_kv_heads=1,
            head_dim=HEAD,
            num_layers=LAYERS,
            weight_bits=4,
            compute="int8",
        )
    )
    return open_session(graph, ort.SessionOptions(), provider, threads=2)


def rows_of(session: ort.InferenceSession) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(3)
    feeds: dict[str, Any] = {
        "x": rng.standard_normal((1, ROWS, WIDTH)).astype(np.float32),
        "past_length": np.array([ROWS - 1], dtype=np.int32),
        "total_length": np.array(ROWS, dtype=np.int32),
    }
    for layer in range(LAYERS):
        for part in ("key", "value"):
            feeds[f"past_{part}_{layer}"] = np.zeros((1, 1, ROWS, HEAD), dtype=np.float32)
    rows: npt.NDArray[np.float32] = session.run(["y"], feeds)[0][0]
    return rows


def test_it_runs_the_products_and_leaves_attention_to_the_cpu() -> None:
    placement = opened(OPENVINO).placement
    assert dict(placement.on_cpu) == {ATTENTION: LAYERS}
    assert placement.num_nodes > 10 * LAYERS
    parts = parts_run(OPENVINO)
    assert parts["4-bit products"] == parts["8-bit products"] == "provider"
    assert parts["attention over a 32-bit cache"] == "cpu"


def test_its_rows_are_the_cpus_up_to_rounding() -> None:
    rows, expected = (rows_of(opened(provider).session) for provider in (OPENVINO, CPU))
    errors = np.linalg.norm(rows - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert 0 < np.median(errors) < 0.05  # 8-bit activations on the CPU, floats here


def test_the_same_rows_have_the_same_bits_every_time() -> None:
    session = opened(OPENVINO).session
    first = rows_of(session)
    for _ in range(3):
        np.testing.assert_array_equal(rows_of(session), first)
    np.testing.assert_array_equal(rows_of(opened(OPENVINO).session), first)

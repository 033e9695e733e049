"""Matrices of a profile run on a GPU as a decode step has them: recorded, each call a replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from cloud.engine import gpu_layer
from cloud.engine.graph_recorder import Recorded
from cloud.engine.profiled_kernels import TorchKernels


class CountingRecorder:
    """Keeps what it was given to record, and counts the replays."""

    def __init__(self) -> None:
        self.results: list[Tensor] = []
        self.num_replays = 0

    def __call__(self, run: Callable[[], tuple[Tensor, Tensor]]) -> Recorded:
        logits, ids = run()
        self.results.append(logits)

        def replay() -> None:
            self.num_replays += 1

        return Recorded(replay, logits, ids)


@pytest.mark.parametrize("weight_bits", [8, 32])
def test_products_are_recorded_once_and_replayed(
    monkeypatch: pytest.MonkeyPatch, weight_bits: int
) -> None:
    products: list[int] = []
    whole = gpu_layer.product

    def counted(linear: Any, rows: Tensor) -> Tensor:
        products.append(rows.shape[0])
        return whole(linear, rows)

    monkeypatch.setattr(gpu_layer, "product", counted)
    recorder = CountingRecorder()
    kernels = TorchKernels("cpu", recorder=recorder)
    with_rows = kernels.matrices(width=16, inner=24, num_pairs=2, weight_bits=weight_bits)
    for num_rows in (1, 3):
        call = with_rows(num_rows)
        recorded = len(products)
        for _ in range(3):
            call()
        assert len(products) == recorded  # the host launches nothing of its own
    assert products == [1] * 4 + [3] * 4  # two pairs: one row goes to the kernel for one
    assert recorder.num_replays == 6
    assert [tuple(result.shape) for result in recorder.results] == [(1, 16), (3, 16)]
    assert all(bool(torch.isfinite(result).all()) for result in recorder.results)


def test_a_cpu_records_nothing() -> None:
    assert TorchKernels("cpu")._recorder is None

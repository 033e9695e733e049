"""Attention that does not work on a device is noticed before anybody is served with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cloud.attention.paged import PagedAttention, has_triton, interprets
from cloud.engine.gpu_trial import why_no_paged_attention
from cloud.kv.pool import KvShape

SHAPE = KvShape(num_layers=2, num_kv_heads=2, head_dim=16)
CPU = torch.device("cpu")


@pytest.mark.skipif(not (has_triton() and interprets()), reason="Triton is not installed")
def test_attention_that_works_is_used() -> None:
    assert why_no_paged_attention(SHAPE, 4, CPU) is None


def test_attention_that_gives_other_numbers_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Any, layer: int, entries: Any, query: Tensor, traits: Any) -> Tensor:
        return torch.full_like(query, float("nan"))

    monkeypatch.setattr(PagedAttention, "attend", wrong)
    assert why_no_paged_attention(SHAPE, 4, CPU) == "its results differ by nan"


def test_a_kernel_that_the_device_cannot_run_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class OutOfResourcesError(Exception):
        pass

    def refuses(*_: object) -> Tensor:
        raise OutOfResourcesError("out of resource: shared memory, Required: 115200\nmore")

    monkeypatch.setattr(PagedAttention, "attend", refuses)
    reason = why_no_paged_attention(SHAPE, 4, CPU)
    assert reason == "OutOfResourcesError: out of resource: shared memory, Required: 115200"

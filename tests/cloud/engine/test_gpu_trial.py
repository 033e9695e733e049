"""Attention that does not work on a device is noticed before anybody is served with it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cloud.attention.paged import PagedAttention, has_triton, interprets
from cloud.engine import engines
from cloud.engine.gpu_trial import why_no_paged_attention
from cloud.errors import StartError
from cloud.kv.pool import KvShape

SHAPE = KvShape(num_layers=2, num_kv_heads=2, head_dim=16)
CPU = torch.device("cpu")


@pytest.mark.skipif(not (has_triton() and interprets()), reason="Triton is not installed")
@pytest.mark.parametrize("kv_dtype", [None, torch.float8_e4m3fn])
def test_attention_that_works_is_used(kv_dtype: torch.dtype | None) -> None:
    assert why_no_paged_attention(SHAPE, 4, CPU, kv_dtype=kv_dtype) is None


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


class OnGpu:
    """What `make_engine` asks of a model, of one that says it is on a GPU."""

    device = torch.device("cuda")
    kv_shape = SHAPE
    config = SimpleNamespace(num_attention_heads=4)


def make_on_gpu(monkeypatch: pytest.MonkeyPatch, reasons: dict[Any, str]) -> None:
    """Keep 8-bit keys and values on a GPU where attention fails so, by type of keys and values."""

    def tried(*_: object, kv_dtype: torch.dtype | None) -> str | None:
        return reasons.get(kv_dtype)

    monkeypatch.setattr(engines, "has_triton", lambda: True)
    monkeypatch.setattr(engines, "why_no_paged_attention", tried)
    engines.make_engine(OnGpu(), kv_type="fp8")  # type: ignore[arg-type]


def test_8_bit_keys_and_values_are_refused_where_the_gpu_has_no_such_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cloud.gpu.weight_only.is_interpreted", lambda: False)
    monkeypatch.setattr("cloud.gpu.weight_only._capability", lambda _: (8, 0))
    with pytest.raises(StartError, match=r"--kv-type fp8 .* capability 8\.0, not 8\.9 or more"):
        make_on_gpu(monkeypatch, {})


@pytest.mark.parametrize("kv_dtype", [None, torch.float8_e4m3fn])
def test_8_bit_keys_and_values_are_refused_where_attention_of_them_fails(
    monkeypatch: pytest.MonkeyPatch, kv_dtype: torch.dtype | None
) -> None:
    """With gathered histories the server would keep 16 bits, whatever was asked for."""
    with pytest.raises(StartError, match="--kv-type fp8 cannot be used here: it differs"):
        make_on_gpu(monkeypatch, {kv_dtype: "it differs"})

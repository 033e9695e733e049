"""int8 weights: near the exact product, and the same bits whoever shares the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cloud.engine.back_engine import BackEngine
from cloud.engine.back_weights import load_back
from cloud.engine.batch_entry import BatchEntry
from cloud.engine.int8_linear import (
    DequantizedLinear,
    Int8Linear,
    integer_product_is_exact,
    quantize_rows,
)
from cloud.kernel import library as native
from cloud.kv.pool import KvPool
from tests.cloud.tiny_bundle import quantized_back, save_back
from tests.tiny_models import make_tiny_model

needs_kernel = pytest.mark.skipif(
    native.load() is None, reason="the kernel was not built, or this processor has no AVX2"
)
needs_int8 = pytest.mark.skipif(
    not integer_product_is_exact("cpu"), reason="this CPU's int8 product saturates"
)


def random_codes(seed: int, out: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-127, 128, (out, width), generator=generator, dtype=torch.int8)
    return codes, torch.rand(out, generator=generator) * 0.01 + 1e-4


def spiky_rows(seed: int, count: int, width: int) -> torch.Tensor:
    """Rows like real activations: mostly around 1, a few values a thousand times larger."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, generator=generator)
    rows[::3, 7] *= 1000
    return rows


@needs_int8
def test_the_product_is_exact_to_fifteen_bits_of_each_row() -> None:
    codes, scale = random_codes(1, 96, 576)
    rows, bias = spiky_rows(2, 33, 576), torch.randn(96)
    exact = rows.double() @ (codes.double() * scale.double()[:, None]).t() + bias.double()
    error = (Int8Linear(codes, scale, bias)(rows).double() - exact).norm(dim=1)
    # Each input is off by at most one step: 1 / (127 * 254) of its row's largest.
    step = rows.abs().amax(dim=1).double() / (127 * 254)
    bound = step * (codes.double().abs() * scale.double()[:, None]).sum(dim=1).norm()
    assert (error <= bound + 1e-4).all()
    # Eight bits alone would be off by several percent on the spiky rows.
    assert (error / exact.norm(dim=1)).max() < 1e-3


@needs_int8
@pytest.mark.parametrize("count", [1, 2, 3, 8, 33, 200])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(count: int) -> None:
    layer = Int8Linear(*random_codes(3, 130, 192))
    rows = spiky_rows(4, count, 192)
    together = layer(rows)
    alone = torch.cat([layer(rows[i : i + 1]) for i in range(count)])
    assert torch.equal(together, alone)


def test_digits_are_int8_and_rebuild_the_row() -> None:
    rows = spiky_rows(5, 9, 64)
    digits, scale = quantize_rows(rows)
    assert digits.dtype == torch.int8
    high, low = digits.float().chunk(2)
    rebuilt = (high + low / 254) * scale
    assert ((rebuilt - rows).abs() <= scale / 254 * 1.001).all()


def test_a_row_of_zeros_gives_zeros() -> None:
    codes, scale = random_codes(6, 32, 64)
    assert torch.equal(Int8Linear(codes, scale)(torch.zeros(2, 64)), torch.zeros(2, 32))


@needs_kernel
@pytest.mark.parametrize(("out", "width"), [(64, 64), (130, 576), (7, 30)])
def test_the_compiled_product_is_the_same_integers(out: int, width: int) -> None:
    codes, scale = random_codes(7, out, width)
    bias = torch.randn(out)
    layer = Int8Linear(codes, scale, bias)
    rows = spiky_rows(8, 11, width)
    digits, row_scale = quantize_rows(rows.clone())
    sums = digits.long() @ codes.long().t()
    high, low = sums.float().chunk(2)
    expected = (high + low / 254) * row_scale * scale + bias
    layer.pack()
    assert layer.codes.numel() == 0
    assert torch.allclose(layer(rows), expected, rtol=1e-6, atol=1e-5)
    assert torch.equal(layer(rows), torch.cat([layer(row[None]) for row in rows]))


def run_sessions(
    engine: BackEngine, sessions: list[torch.Tensor], *, together: bool
) -> list[torch.Tensor]:
    """Logits of every row, five sessions of different splits in one batch or one by one."""
    pool = KvPool(engine.kv_shape, limit_bytes=1 << 26)
    leases = [pool.lease(split=i % 4, max_tokens=12) for i in range(5)]
    out: list[list[torch.Tensor]] = [[] for _ in range(5)]
    for begin, end in ((0, 9), (9, 10), (10, 12)):
        batch = [
            BatchEntry(lease=lease, rows=rows[begin:end], num_logits=end - begin)
            for lease, rows in zip(leases, sessions, strict=True)
        ]
        parts = engine.forward(batch) if together else [engine.forward([e])[0] for e in batch]
        for kept, part in zip(out, parts, strict=True):
            kept.append(part)
    return [torch.cat(parts) for parts in out]


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3", "phi3"])
@pytest.mark.parametrize("way", ["compiled", "torch"])
def test_an_int8_back_equals_the_dequantized_back_and_is_batch_invariant(
    name: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "compiled" and native.load() is None:
        pytest.skip("the kernel was not built, or this processor has no AVX2")
    save_back(make_tiny_model(name, tmp_path / "source"), tmp_path / "cloud")
    quantized_back(tmp_path / "cloud")
    kernel = native.load() if way == "compiled" else None
    monkeypatch.setattr("cloud.kernel.library.load", lambda: kernel)
    fast = BackEngine(load_back(tmp_path / "cloud", first_layer=0))
    # The compiled layers have Llama's two norms. The compiled products take any family's.
    assert fast.is_native == (way == "compiled" and name != "gemma3")
    monkeypatch.setattr("cloud.kernel.library.load", lambda: None)
    monkeypatch.setattr("cloud.engine.int8_linear.integer_product_is_exact", lambda _: False)
    plain = BackEngine(load_back(tmp_path / "cloud", first_layer=0))
    assert any(isinstance(m, DequantizedLinear) for m in plain.model.layers[0].modules())
    sessions = [torch.randn(12, fast.hidden_size) for _ in range(5)]
    monkeypatch.undo()
    together = run_sessions(fast, sessions, together=True)
    alone = run_sessions(fast, sessions, together=False)
    reference = run_sessions(plain, sessions, together=False)
    for got, single, expected in zip(together, alone, reference, strict=True):
        if fast.is_native:
            assert torch.equal(got, single)
        assert (got - single).norm() < 1e-5 * expected.norm()
        assert (got - expected).norm() < 3e-3 * expected.norm()


@needs_kernel
def test_the_compiled_layers_know_shared_prefixes_and_rollbacks(tmp_path: Path) -> None:
    save_back(make_tiny_model("llama", tmp_path / "source"), tmp_path / "cloud")
    quantized_back(tmp_path / "cloud")
    engine = BackEngine(load_back(tmp_path / "cloud", first_layer=0))
    assert engine.is_native
    pool = KvPool(engine.kv_shape, limit_bytes=1 << 24)
    rows = torch.randn(30, engine.hidden_size)
    whole = pool.lease(split=1, max_tokens=40)
    (expected,) = engine.forward([BatchEntry(lease=whole, rows=rows, num_logits=30)])
    first = pool.lease(split=1, max_tokens=40, shareable_tokens=16)
    engine.forward([BatchEntry(lease=first, rows=rows[:16], num_logits=0)])
    second = pool.lease(split=1, max_tokens=40, shared=pool.share(first, 16))
    assert len(second.segments) == 2
    (logits,) = engine.forward([BatchEntry(lease=second, rows=rows[16:], num_logits=14)])
    assert torch.equal(logits, expected[16:])
    second.rollback(24)
    wrong = torch.randn(3, engine.hidden_size)
    engine.forward([BatchEntry(lease=second, rows=wrong, num_logits=0)])
    second.rollback(24)
    (logits,) = engine.forward([BatchEntry(lease=second, rows=rows[24:26], num_logits=2)])
    assert torch.equal(logits, expected[24:26])
    (logits,) = engine.forward([BatchEntry(lease=second, rows=rows[26:], num_logits=4)])
    assert torch.equal(logits, expected[26:])


@needs_kernel
def test_every_thread_that_may_join_a_step_has_scratch_of_its_own(tmp_path: Path) -> None:
    """Another engine of the process may add threads after a step was laid out."""
    save_back(make_tiny_model("llama", tmp_path / "source"), tmp_path / "cloud")
    quantized_back(tmp_path / "cloud")
    engine = BackEngine(load_back(tmp_path / "cloud", first_layer=0))
    run_sessions(engine, [torch.randn(12, engine.hidden_size) for _ in range(5)], together=True)
    assert engine._native is not None
    longest = 12
    assert engine._native._buffers["scores"].numel() >= native.MAX_THREADS * longest

"""Shipped profiles of GPUs against what a server took on one, and all profiles at many rows."""

from __future__ import annotations

import pytest

from hwprofiles.profiles.catalog import load_device, shipped_devices
from optimizer.artifacts.specs import load_spec
from optimizer.cost.cloud import SessionRows, back_step_s

GEOMETRY = load_spec("llama-3.1-8b").geometry
NUM_LAYERS = 24  # of the run that docs/results/gpu.md reports, on an H200
# Sessions of 1,024 tokens: whole step and the host's part beside it, in milliseconds.
MEASURED_MS = {1: 3.69 + 0.20, 8: 3.95 + 0.23, 64: 5.76 + 1.04}
MEASURED_PREFILL_S = 0.332  # of 8 prompts of 2,048 tokens


def step_s(device: str, sessions: list[SessionRows]) -> float:
    return back_step_s(
        load_device(device),
        GEOMETRY,
        num_layers=NUM_LAYERS,
        back_bits=16,
        kv_bits=16,
        sessions=sessions,
    )


@pytest.mark.parametrize(("sessions", "measured_ms"), MEASURED_MS.items())
def test_decode_steps_of_an_h200_are_within_a_tenth(sessions: int, measured_ms: float) -> None:
    predicted_s = step_s("h200-141gb", [SessionRows(1, 1023)] * sessions)
    assert 1e3 * predicted_s == pytest.approx(measured_ms, rel=0.1)


def test_a_prefill_of_an_h200_is_within_a_tenth() -> None:
    predicted_s = step_s("h200-141gb", [SessionRows(2048, 0)] * 8)
    assert predicted_s == pytest.approx(MEASURED_PREFILL_S, rel=0.1)


@pytest.mark.parametrize("device", ["a100-80gb", "h100-80gb", "h200-141gb", "l4-24gb"])
def test_a_batch_on_a_gpu_costs_little_more_than_one_session(device: str) -> None:
    """A step reads the weights once. Of 64 histories of 1,024 tokens it reads less than of them."""
    alone_s = step_s(device, [SessionRows(1, 1023)])
    assert step_s(device, [SessionRows(1, 1023)] * 64) < 2 * alone_s


@pytest.mark.parametrize("device", shipped_devices())
def test_every_profile_knows_attention_of_many_rows(device: str) -> None:
    """The part that does not grow with the tokens is a call's. From one row alone it would be
    taken for each row of a prompt."""
    for kernel in load_device(device).attention:
        by_rows = {point.num_rows: point.fixed_s for point in kernel.points}
        most = max(by_rows)
        assert most >= 128
        assert by_rows[most] <= most * by_rows[1] / 4

"""A cache in memory of ONNX Runtime's own gives the bits of one in this process's arrays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge.device import front_segment
from edge.device.cache_buffer import DeviceBuffer, HostBuffer, cache_buffer
from edge.device.front import FrontEngine
from optimizer.artifacts.plan import Plan
from optimizer.export.front.front_graph import export_front
from optimizer.export.sources.model_source import open_source
from tests.optimizer.export.plans import make_plan
from tests.tiny_models import make_tiny_model

SPLITS = (1, 3)
TEXT = np.arange(5, 21)


@pytest.fixture(scope="module", params=[16, 32])
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Plan]:
    folder = tmp_path_factory.mktemp("front")
    make_tiny_model("llama", folder / "model")
    source = open_source(folder / "model")
    plan = make_plan(source, SPLITS[-1], back_start=0, max_tokens=24, kv_bits=request.param)
    plan = replace(plan, front_splits=SPLITS)
    export_front(source, plan, folder)
    return folder, plan


def test_steps_rollbacks_moves_and_shipped_values_are_the_same(
    built: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plan = built

    def outcome() -> list[np.ndarray]:
        (front,) = FrontEngine.load(folder, plan=plan, threads=1)
        rows = [front.forward(TEXT[:9]), front.forward(TEXT[9:10])]
        front.rollback(7)
        rows.append(front.forward(TEXT[7:12]))
        kept = front.cached_from(1)
        assert kept is not None
        rows += [kept.read(0, 12), kept.read(3, 5)]
        front.move_to(1)  # which makes the cache of the first layer longer
        rows.append(front.forward(TEXT[12:]))
        assert kept.read(3, 5).shape[0] == 2
        return rows

    on_host = outcome()
    monkeypatch.setattr(
        front_segment, "cache_buffer", lambda values, _device: DeviceBuffer(values, "cpu")
    )
    for here, there in zip(on_host, outcome(), strict=True):
        np.testing.assert_array_equal(here, there)


def test_a_buffer_lies_where_it_is_asked_to() -> None:
    values = np.arange(24, dtype=np.float32).reshape(1, 2, 4, 3)
    host = cache_buffer(values, "cpu")
    assert isinstance(host, HostBuffer)
    assert np.shares_memory(host.first(2), values)
    device = DeviceBuffer(values, "cpu")
    np.testing.assert_array_equal(device.first(3), values[:, :, :3])
    values[:] = 0
    assert device.first(1).any()
    assert (device.capacity, device.nbytes) == (host.capacity, host.nbytes) == (4, 96)

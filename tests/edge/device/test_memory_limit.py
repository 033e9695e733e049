"""A front that will not fit is refused before it is loaded, with numbers and a way out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codec.session_rows import held_bytes
from edge.client import EdgeClient
from edge.device.front import FrontEngine
from edge.device.memory_limit import (
    STEP_BYTES,
    MemoryLimit,
    allowed,
    changes,
    fitting,
    nearest_plan,
    needed_memory,
    other_models_bytes,
    session_bytes,
)
from edge.errors import MemoryLimitError
from optimizer.artifacts.bundle import Role, open_bundle
from optimizer.artifacts.plan import ModelRef, Partition, Plan
from optimizer.artifacts.prediction import Limits
from optimizer.artifacts.specs import load_spec
from optimizer.errors import BundleError
from optimizer.export.bundle_builder import build_bundle
from tests.conftest import ModelBench

MIB = 1 << 20
RUNTIME = 90.0 * MIB


@pytest.fixture(scope="module")
def plan() -> Plan:
    """SmolLM2-135M, a third of it on the edge at 8 bits."""
    return Plan(
        model=ModelRef(id="m", sha256="0" * 64, geometry=load_spec("smollm2-135m").geometry),
        partition=Partition(split=10, front_bits=8, back_bits=8),
        back_start=0,
        kv_bits=32,
        level="lossless",
        max_tokens=2048,
        prefill_chunk=128,
    )


def test_what_fits_is_let_through_part_by_part(plan: Plan) -> None:
    assert fitting(plan, limit_bytes=400 * MIB, runtime_bytes=RUNTIME).chunk_tokens == 128
    needed = needed_memory(plan, RUNTIME, 1)
    assert needed.runtime_bytes == RUNTIME
    assert needed.kv_bytes == plan.front_kv_bytes()
    twice = needed_memory(plan, RUNTIME, 2)
    assert twice.kv_bytes == 2 * needed.kv_bytes
    assert twice.weight_bytes == needed.weight_bytes


@pytest.mark.parametrize(
    ("level", "bits"), [("lossless", 27.1), ("q1", 4.3), ("q4", 4.3), ("tabq1", 5.0)]
)
def test_the_journal_is_counted_at_the_dearest_level_of_the_plans_kind(
    plan: Plan, level: str, bits: float
) -> None:
    """A session may move to a finer level of the kind than its plan begins with."""
    at_level = replace(plan, level=level)
    width = plan.model.geometry.hidden_size
    row_bytes = bits * width / 8 + STEP_BYTES
    held = 0 if level == "lossless" else held_bytes(plan.max_tokens, width)  # see `--adapt`
    assert session_bytes(at_level) == pytest.approx(plan.max_tokens * row_bytes + held)


def test_a_little_too_much_costs_a_smaller_chunk_and_nothing_else(plan: Plan) -> None:
    limit = int(needed_memory(plan, RUNTIME, 1).total_bytes - MIB)
    chunk = fitting(plan, limit_bytes=limit, runtime_bytes=RUNTIME).chunk_tokens
    assert chunk == 64
    smaller = needed_memory(replace(plan, prefill_chunk=chunk), RUNTIME, 1)
    assert smaller.total_bytes <= limit


def test_what_does_not_fit_is_refused_with_the_nearest_plan(plan: Plan) -> None:
    total = needed_memory(plan, RUNTIME, 1).total_bytes
    limit = int(total - 15 * MIB)
    with pytest.raises(MemoryLimitError, match=r"needs \d+\.\d MiB of the \d+\.\d MiB") as caught:
        fitting(plan, limit_bytes=limit, runtime_bytes=RUNTIME)
    line = str(caught.value)
    assert "\n" not in line
    for part in ("runtime 90.0 MiB", "weights", "embedding", "KV cache", "workspace"):
        assert part in line
    near = nearest_plan(plan, limit_bytes=limit, runtime_bytes=RUNTIME)
    assert near is not None
    assert len(changes(plan, near)) == 1
    assert changes(plan, near)[0] in line
    assert needed_memory(near, RUNTIME, 1).total_bytes <= limit


def test_a_front_in_segments_is_advised_fewer_of_them(plan: Plan) -> None:
    """Splits of its own that are lower, and the flag that it was built with."""
    segmented = replace(
        plan,
        partition=replace(plan.partition, front_bits=4),
        front_splits=(4, 8, 10),
        kv_bits=8,
        max_tokens=128,
        prefill_chunk=16,
    )
    needed = needed_memory(segmented, RUNTIME, 1).total_bytes
    fitting = nearest_plan(segmented, limit_bytes=int(needed - 4 * MIB), runtime_bytes=RUNTIME)
    assert fitting is not None
    assert fitting.splits == (4, 8)
    assert changes(segmented, fitting) == ("--splits 4,8",)


def test_the_nearest_plan_really_is_the_one_that_changes_least(plan: Plan) -> None:
    """Where one setting is not enough, two change, and no plan with more layers would do."""
    limit = int(needed_memory(plan, RUNTIME, 1).total_bytes * 0.62)
    near = nearest_plan(plan, limit_bytes=limit, runtime_bytes=RUNTIME)
    assert near is not None
    larger = replace(
        near, partition=replace(near.partition, split=near.partition.split + 1), back_start=0
    )
    if near.partition.split < plan.partition.split:
        assert needed_memory(larger, RUNTIME, 1).total_bytes > limit


def test_a_limit_below_the_runtime_says_that_nothing_fits(plan: Plan) -> None:
    with pytest.raises(MemoryLimitError, match="no plan of this model fits: the smallest, --split"):
        fitting(plan, limit_bytes=60 * MIB, runtime_bytes=RUNTIME)


def test_the_client_refuses_before_it_loads_the_front(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        pytest.fail("the front was loaded")

    bench: ModelBench = tiny("llama")
    bundle: Path = bench.edge_bundle(2)
    monkeypatch.setattr(FrontEngine, "load", load)
    with pytest.raises(MemoryLimitError, match="needs"):
        EdgeClient(bundle, "127.0.0.1:1", memory_limit_bytes=20 * MIB)


def test_without_a_limit_the_one_of_the_plan_holds(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(FrontEngine, "load", lambda *args, **kwargs: pytest.fail("loaded"))
    bench: ModelBench = tiny("llama")
    plan = replace(bench.plan(2), limits=Limits(edge_memory_bytes=20.0 * MIB))
    edge_only: tuple[Role, ...] = ("edge",)
    build_bundle(bench.source, plan, tmp_path / "b", progress=lambda stage: None, sides=edge_only)
    with pytest.raises(MemoryLimitError, match=r"of the 20\.0 MiB allowed"):
        EdgeClient(tmp_path / "b", "127.0.0.1:1")


def test_a_fallback_and_a_draft_model_take_their_part_of_the_limit(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench: ModelBench = tiny("llama")
    split, whole = bench.edge_bundle(2), bench.edge_bundle(bench.source.geometry.num_layers)
    monkeypatch.setattr(FrontEngine, "load", lambda *args, **kwargs: pytest.fail("loaded"))
    monkeypatch.setattr("edge.device.memory_limit.runtime_bytes", lambda: RUNTIME)
    plan = bench.plan(2)
    alone = int(needed_memory(plan, RUNTIME, 2).total_bytes) + 1
    others = other_models_bytes((whole, None, whole), sequences=2)
    whole_plan = open_bundle(whole, role="edge").plan
    assert others == 2 * needed_memory(whole_plan, 0.0, 2).total_bytes > 0
    assert allowed(plan, None, MemoryLimit(alone), sequences=2).chunk_tokens == plan.prefill_chunk
    assert MemoryLimit(alone, others).front_bytes == int(alone - others)
    with pytest.raises(MemoryLimitError, match=r"other models \d+\.\d MiB"):
        EdgeClient(split, fallback=whole, memory_limit_bytes=alone, concurrency=2)


def test_a_folder_that_is_no_bundle_counts_nothing_and_is_refused_when_it_is_opened(
    tiny: Any, tmp_path: Path
) -> None:
    assert other_models_bytes((tmp_path,), sequences=1) == 0
    bench: ModelBench = tiny("llama")
    with pytest.raises(BundleError, match="not a bundle"):
        EdgeClient(bench.edge_bundle(2), fallback=tmp_path)

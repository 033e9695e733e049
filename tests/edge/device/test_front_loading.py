"""A front runs on the provider that was asked for, once it has shown that its rows can be used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge.device import front_loading, memory_limit
from edge.device.front_loading import LoadedFront, load_front
from edge.device.front_report import FrontReport, merged
from edge.device.front_trial import row_difference, tried_rows
from edge.errors import FrontError, InputError, MemoryLimitError
from hwprofiles.errors import ProviderError
from hwprofiles.providers import sessions
from hwprofiles.providers.sessions import NodePlacement
from hwprofiles.providers.table import CPU, CUDA, OPENVINO, PROVIDERS, ExecutionProvider
from optimizer.artifacts.plan import Plan
from optimizer.artifacts.prediction import ProfilesUsed
from optimizer.export.front.front_graph import export_front
from optimizer.export.sources.model_source import open_source
from tests.optimizer.export.plans import make_plan
from tests.tiny_models import make_tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate provider")
LEFT = NodePlacement(num_nodes=9, on_cpu=(("GroupQueryAttention", 2),))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    folder = tmp_path_factory.mktemp("front")
    make_tiny_model("llama", folder / "model")
    source = open_source(folder / "model")
    plan = make_plan(source, 2, max_tokens=24)
    export_front(source, plan, folder)
    return folder, plan


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> ExecutionProvider:
    """CUDA, as if it were there: the CPU's kernels under its name."""
    fake = replace(CUDA, runtime_name=CPU.runtime_name, options=lambda _threads: {}, device="cpu")
    monkeypatch.setitem(PROVIDERS, "cuda", fake)
    return fake


def load(built: tuple[Path, Plan], provider: str = "auto", **options: Any) -> LoadedFront:
    folder, plan = built
    return load_front(folder, plan=options.pop("plan", plan), provider=provider, **options)


def planned_for(plan: Plan, provider: Any) -> Plan:
    used = ProfilesUsed(edge="e", cloud="c", link="l", edge_provider=provider)
    return replace(plan, profiles=used)


@pytest.fixture
def only_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_loading, "available_providers", lambda: (CPU,))


@pytest.mark.usefixtures("only_the_cpu")
def test_without_another_provider_the_cpu_runs_it_and_nothing_is_said(
    built: tuple[Path, Plan],
) -> None:
    report = load(built).report
    assert report == FrontReport()
    assert report.line == ""
    assert report.to_json() == {"provider": "cpu", "not_taken": []}


def test_another_provider_is_tried_and_reported(
    built: tuple[Path, Plan], stand_in: ExecutionProvider
) -> None:
    loaded = load(built, "cuda", count=2)
    assert len(loaded.engines) == 2
    assert loaded.engines[0].num_tokens == 0
    report = loaded.report
    assert (report.provider, report.on_cpu, report.row_difference) == ("cuda", (), 0.0)
    assert report.num_nodes > 10
    assert report.depends_on_cut
    assert report.line == (
        f"cuda runs {report.num_nodes} of the front's {report.num_nodes} nodes, and its rows are "
        "0 % from the CPU's"
    )


def test_auto_takes_it_only_if_it_runs_every_node(
    built: tuple[Path, Plan], stand_in: ExecutionProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_loading, "available_providers", lambda: (CPU, stand_in))
    assert load(built).report.provider == "cuda"
    monkeypatch.setattr(sessions, "_placement", lambda *_: LEFT)
    report = load(built).report
    assert report.provider == "cpu"
    assert "not taken: cuda runs 7 of the front's 9 nodes (the CPU: GroupQuery" in report.line
    assert report.line.endswith("; the CPU runs the front")
    asked = load(built, "cuda").report
    assert asked.to_json()["nodes_on_cpu"] == {"GroupQueryAttention": 2}
    planned = load(built, plan=planned_for(built[1], "cuda")).report
    assert planned.provider == "cuda"
    monkeypatch.setattr(sessions, "_placement", lambda *_: NodePlacement(is_known=False))
    report = load(built).report
    assert report.provider == "cpu"
    assert "does not say which nodes" in report.line
    assert load(built, "cuda").report.to_json()["nodes"] is None


@pytest.mark.usefixtures("only_the_cpu")
def test_a_provider_that_the_plan_was_made_for_is_missed(built: tuple[Path, Plan]) -> None:
    report = load(built, plan=planned_for(built[1], "openvino")).report
    assert report.provider == "cpu"
    assert report.line == (
        "planned for openvino, which this onnxruntime does not have; the CPU runs the front"
    )


def test_auto_says_why_one_does_not_start(
    built: tuple[Path, Plan], stand_in: ExecutionProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_loading, "available_providers", lambda: (CPU, stand_in))

    def fail(*_: Any) -> NodePlacement:
        raise ProviderError("cuda: does not start here (no driver)")

    monkeypatch.setattr(sessions, "_placement", fail)
    report = load(built).report
    assert report.provider == "cpu"
    assert "cuda: does not start here (no driver); the CPU runs the front" in report.line
    with pytest.raises(FrontError, match=r"front\.onnx: cuda: does not start here"):
        load(built, "cuda")


@pytest.mark.parametrize("wrong", ["scaled", "not a number", "different every time"])
def test_rows_that_cannot_be_used_are_refused(
    built: tuple[Path, Plan],
    stand_in: ExecutionProvider,
    monkeypatch: pytest.MonkeyPatch,
    wrong: str,
) -> None:
    real, calls = tried_rows, iter(range(9))
    factors = {
        "scaled": (1.0, 1.3, 1.3),
        "not a number": (1.0, np.inf, np.inf),
        "different every time": (1.0, 1.0, 1.0 + 1e-6),
    }[wrong]
    monkeypatch.setattr(
        front_loading, "tried_rows", lambda *each: real(*each) * np.float32(factors[next(calls)])
    )
    reason = "gave other rows the second time" if wrong[0] == "d" else "from the CPU's, and at most"
    with pytest.raises(FrontError, match=reason):
        load(built, "cuda")


def resident(num_bytes: int) -> Any:
    """A psutil in which this process takes so much."""
    info = SimpleNamespace(rss=num_bytes)
    return SimpleNamespace(Process=lambda: SimpleNamespace(memory_info=lambda: info))


def test_the_difference_of_rows_is_their_median() -> None:
    expected = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]], dtype=np.float32)
    rows = expected + np.array([[0.0, 0.5], [9.0, 0.0], [0.0, 0.0]], dtype=np.float32)
    assert row_difference(rows, expected) == pytest.approx(0.1)


def test_a_provider_that_is_not_here_or_not_known_is_bad_input(built: tuple[Path, Plan]) -> None:
    missing = next(
        each for each in PROVIDERS.values() if each not in sessions.available_providers()
    )
    with pytest.raises(InputError, match=f"--provider {missing.name}: this onnxruntime"):
        load(built, missing.name)
    with pytest.raises(InputError, match="no provider 'gpu': choose one of auto, cpu, cuda"):
        load(built, "gpu")


def test_a_memory_limit_holds_with_every_provider(
    built: tuple[Path, Plan], stand_in: ExecutionProvider
) -> None:
    assert load(built, "cuda", memory_limit_bytes=1 << 40).report.provider == "cuda"
    with pytest.raises(
        MemoryLimitError, match=r"with the front loaded by cuda, .* allowed; allow more"
    ):
        load(built, "cuda", memory_limit_bytes=1 << 20)
    memory_limit.check_loaded(1 << 40, built[1], provider="cuda", sequences=1)


def test_caches_that_are_not_touched_yet_count_against_the_limit(
    built: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded and tried, a front has touched next to nothing of its caches."""
    taken = 100 << 20
    monkeypatch.setattr(memory_limit, "psutil", resident(taken))
    needed = memory_limit.needed_memory(built[1], 0.0, 3)
    later = needed.kv_bytes + needed.workspace_bytes + needed.embedding_bytes + needed.codec_bytes
    assert needed.kv_bytes > 0
    memory_limit.check_loaded(int(taken + later) + 1, built[1], provider="cuda", sequences=3)
    with pytest.raises(MemoryLimitError, match="more with full caches"):
        memory_limit.check_loaded(
            int(taken + later - needed.kv_bytes / 2), built[1], provider="cuda", sequences=3
        )


def test_auto_takes_the_cpu_where_another_provider_would_break_the_limit(
    built: tuple[Path, Plan], stand_in: ExecutionProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(built, "auto").report.provider == "cuda"
    report = load(built, "auto", memory_limit_bytes=1 << 20).report
    assert report.provider == "cpu"
    assert any("allowed; allow more" in reason for reason in report.not_taken)


def test_segments_are_counted_together() -> None:
    placement = merged([LEFT, replace(LEFT, num_nodes=4), NodePlacement(is_known=False)])
    assert placement.on_cpu == (("GroupQueryAttention", 4),)
    assert (placement.num_nodes, placement.is_known) == (13, False)
    assert OPENVINO.options(3)["num_of_threads"] == "3"

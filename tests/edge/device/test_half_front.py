"""A front in 16 bits: used where the processor computes so, and said where it is widened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.device import front_graphs, half_front
from edge.device.front_loading import LoadedFront, load_bundle_front
from edge.device.half_front import counts_halves, half_choice
from edge.device.memory_limit import needed_memory
from edge.errors import MemoryLimitError
from hwprofiles.profiler.half_probe import computes_halves
from hwprofiles.providers.sessions import open_session
from hwprofiles.providers.table import CPU, CUDA, PROVIDERS
from optimizer.artifacts.bundle import Bundle, open_bundle, write_manifest
from optimizer.artifacts.half_front import HALF_ROWS_NAME, HalfRows, half_rows_of
from optimizer.export.bundle_builder import build_bundle
from optimizer.export.sources.model_source import open_source
from tests.optimizer.export.plans import make_plan
from tests.tiny_models import make_tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate provider")


def built(folder: Path, **changes: Any) -> Bundle:
    make_tiny_model("llama", folder / "model")
    source = open_source(folder / "model")
    plan = make_plan(source, 2, **{"front_bits": 16, **changes})
    build_bundle(source, plan, folder / "bundle", progress=lambda _: None)
    return open_bundle(folder / "bundle", role="edge")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return built(tmp_path_factory.mktemp("front"))


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this processor computed in 16 bits."""
    monkeypatch.setattr(half_front, "computes_halves", lambda _provider: True)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The graphs that are loaded."""
    names: list[str] = []
    plain = open_session

    def told(model: str, *args: Any, **options: Any) -> Any:
        names.append(Path(model).name)
        return plain(model, *args, **options)

    monkeypatch.setattr(front_graphs, "open_session", told)
    return names


def load(bundle: Bundle, provider: str = "cpu", **options: Any) -> LoadedFront:
    return load_bundle_front(bundle, provider=provider, threads=1, **options)


@pytest.mark.usefixtures("halves")
@pytest.mark.parametrize("provider", ["cpu", "auto"])
def test_the_16_bit_graph_runs_where_the_processor_can(
    bundle: Bundle, opened: list[str], provider: str
) -> None:
    loaded = load(bundle, provider, count=2)
    assert opened == ["front.fp16.onnx"]
    report = loaded.report
    assert report.line == ""
    assert report.depends_on_cut
    assert 0 < report.model_difference < 0.01
    computed = {"arithmetic": "fp16", "widened": None}
    assert report.to_json() == {"provider": "cpu", "not_taken": [], **computed}
    ids = np.arange(5)
    rows = [engine.forward(ids) for engine in (*loaded.engines, loaded.engines[0].sibling())]
    assert all(np.array_equal(rows[0], each) for each in rows)
    assert opened == ["front.fp16.onnx"]  # a sibling has the same graph


def test_other_processors_widen_and_say_so(bundle: Bundle, opened: list[str]) -> None:
    if computes_halves(CPU):
        pytest.skip("this processor computes in 16 bits")
    report = load(bundle).report
    assert opened == ["front.onnx"]
    assert report.arithmetic == "fp32"
    assert report.line == (
        "the front's 16-bit weights are widened to 32 bits: "
        "the processor's kernels compute in 32 bits"
    )
    assert report.to_json()["widened"] == "the processor's kernels compute in 32 bits"
    assert not report.depends_on_cut


@pytest.mark.usefixtures("halves")
def test_a_bundle_without_the_graph_is_widened(tmp_path: Path, opened: list[str]) -> None:
    root = built(tmp_path).root
    for path in (root / "edge").glob("*fp16*"):
        path.unlink()
    write_manifest(root)
    old = open_bundle(root, role="edge")
    report = load(old).report
    assert opened == ["front.onnx"]
    assert report.widened == "the bundle has no 16-bit graph"
    assert not counts_halves(old, "cpu")


@pytest.mark.usefixtures("halves")
def test_rows_that_are_not_the_model_s_are_not_used(tmp_path: Path, opened: list[str]) -> None:
    root = built(tmp_path).root
    tried = half_rows_of(open_bundle(root, role="edge"))
    assert tried is not None
    HalfRows(tried.token_ids, 1.2 * tried.rows).save(root / HALF_ROWS_NAME)
    write_manifest(root)
    report = load(open_bundle(root, role="edge")).report
    assert opened == ["front.fp16.onnx", "front.onnx"]
    assert report.arithmetic == "fp32"
    assert "in 16 bits its rows are 17 % from the model's, and at most 5 %" in report.line
    with pytest.raises(MemoryLimitError, match="with the front loaded by the CPU, widened"):
        load(open_bundle(root, role="edge"), memory_limit_bytes=1 << 20)


@pytest.mark.usefixtures("halves")
def test_exact_and_other_fronts_are_left_alone(tmp_path: Path) -> None:
    exact = built(tmp_path / "exact", exact_front=True)
    assert load(exact).report.widened == "exact results were asked for"
    quantized = built(tmp_path / "8", front_bits=8)
    report = load(quantized).report
    assert (report.arithmetic, report.widened, report.line) == ("", "", "")
    assert half_choice(quantized) == half_front.WIDE


def test_cuda_runs_the_16_bit_graph(
    bundle: Bundle, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = replace(CUDA, runtime_name=CPU.runtime_name, options=lambda _threads: {}, device="cpu")
    monkeypatch.setitem(PROVIDERS, "cuda", fake)
    report = load(bundle, "cuda").report
    assert opened == ["front.onnx", "front.fp16.onnx"]
    assert (report.arithmetic, report.widened) == ("fp16", "")
    assert report.row_difference < 0.01
    monkeypatch.setitem(PROVIDERS, "cuda", replace(fake, runs_halves=False))
    report = load(bundle, "cuda").report
    assert report.arithmetic == "fp32"
    assert "cuda is not known to compute in 16 bits" in report.line


def test_memory_is_counted_as_it_will_be(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    wide, half = (needed_memory(bundle.plan, 0.0, 1, halves) for halves in (False, True))
    assert wide.weight_bytes > 1.9 * half.weight_bytes
    assert wide.kv_bytes == half.kv_bytes
    monkeypatch.setattr(half_front, "computes_halves", lambda _provider: True)
    assert [counts_halves(bundle, each) for each in ("auto", "cpu", "cuda", "openvino", "no")] == [
        True, True, True, False, False,
    ]  # fmt: skip

"""Streamed layers compute what layers in memory compute, and memory stays under the limit."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.edge.seeded_front import write_seeded_front
from edge.device import layer_stream
from edge.device.front import FrontEngine
from edge.device.front_loading import load_front
from edge.device.memory_limit import Fitting, fitting, needed_memory
from edge.device.packed_copies import FOLDER_VARIABLE
from edge.errors import FrontError, InputError, MemoryLimitError
from optimizer.artifacts.bundle import front_names
from optimizer.artifacts.plan import Plan
from optimizer.cost.streaming import streamed_bytes
from optimizer.errors import PlanError
from optimizer.export.front.front_graph import export_front
from optimizer.export.sources.model_source import open_source
from tests.optimizer.export.plans import make_plan
from tests.tiny_models import make_tiny_model

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's madvise")
STEPS = [np.arange(5, 16), np.array([7]), np.array([9, 11]), np.array([3])]
SIZES = {
    "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 512,
}  # fmt: skip
MEASURE = """
import json, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
import edge.client
from edge.device.front_loading import load_front
from edge.device.memory_limit import fitting, needed_memory, runtime_bytes
from hwprofiles.heap import return_freed_blocks
from hwprofiles.peak_memory import peak_memory_bytes
from optimizer.artifacts.plan import load_plan
folder = Path(sys.argv[1])
return_freed_blocks()
plan = load_plan(folder / "plan.yaml")
started = peak_memory_bytes()
runtime = runtime_bytes()
weights = needed_memory(replace(plan, streamed_layers=0), 0.0, 1).weight_bytes
limit = int(runtime + weights / 2)
chosen = fitting(plan, limit_bytes=limit, runtime_bytes=runtime)
loaded = load_front(folder, plan=plan, memory_limit_bytes=limit, threads=1,
                    streamed_layers=chosen.streamed_layers)
for token in range(6):
    loaded.engines[0].forward(np.array([token]))
print(json.dumps({"limit": limit, "started": started, "peak": peak_memory_bytes(),
                  "streamed": chosen.streamed_layers, "line": loaded.report.line}))
"""


@pytest.fixture(autouse=True)
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "packed"


@pytest.fixture
def seeded(tmp_path: Path) -> tuple[Path, Plan]:
    plan = write_seeded_front(
        tmp_path / "front",
        bits=4,
        blocks="large",
        streamed_layers=3,
        max_tokens=64,
        num_hidden_layers=6,
        **SIZES,
    )
    return tmp_path / "front", plan


def rows_of(front: FrontEngine) -> list[Any]:
    return [front.forward(step) for step in STEPS]


def passes(front: FrontEngine, count: int) -> None:
    for _ in range(count):
        front.forward(STEPS[1])


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize(
    "changes", [{"front_bits": 4, "kv_bits": 8}, {"front_bits": 16}, {"front_bits": 32}], ids=str
)
def test_any_number_of_streamed_layers_gives_the_bits_of_one_graph(
    architecture: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    make_tiny_model(architecture, tmp_path / "model")
    source = open_source(tmp_path / "model")
    whole = make_plan(source, 4, back_start=0, max_tokens=24, **changes)
    fronts = {"whole": whole, "cut": replace(whole, streamed_layers=2)}
    for name, plan in fronts.items():
        (tmp_path / name).mkdir()
        export_front(source, plan, tmp_path / name)
    expected = rows_of(FrontEngine.load(tmp_path / "whole", plan=whole, threads=1)[0])
    for count in (0, 1, 2):
        (front,) = FrontEngine.load(
            tmp_path / "cut", plan=fronts["cut"], threads=1, streamed_layers=count
        )
        assert front.streamed_layers == count
        for rows, wanted in zip(rows_of(front), expected, strict=True):
            np.testing.assert_array_equal(rows, wanted)


def test_a_second_engine_and_a_rollback_stay_exact(seeded: tuple[Path, Plan]) -> None:
    folder, plan = seeded
    one, other = FrontEngine.load(folder, plan=plan, threads=1, count=2, forget=True)
    expected = rows_of(one)
    one.rollback(12)
    np.testing.assert_array_equal(one.forward(STEPS[2]), expected[2])
    for rows, wanted in zip(rows_of(other), expected, strict=True):
        np.testing.assert_array_equal(rows, wanted)


def test_a_pass_reads_what_the_plan_counts(seeded: tuple[Path, Plan]) -> None:
    folder, plan = seeded
    loaded = load_front(folder, plan=plan)
    (front,) = loaded.engines
    assert (front.streamed_layers, loaded.report.may_adapt_chunks) == (3, False)
    assert "3 layers do not fit in memory: every step reads their" in loaded.report.line
    assert loaded.report.to_json()["streamed_layers"] == 3
    rows_of(front)
    assert front.streamed_bytes == pytest.approx(streamed_bytes(plan), rel=0.05)


def test_copies_are_made_once_and_anew_for_another_file(
    seeded: tuple[Path, Plan], copies: Path
) -> None:
    folder, plan = seeded
    first = rows_of(FrontEngine.load(folder, plan=plan, threads=1)[0])
    before = {path: path.stat().st_mtime_ns for path in copies.rglob("*")}
    assert sum(path.suffix == ".json" for path in before) == 3
    FrontEngine.load(folder, plan=plan, threads=1)
    assert before == {path: path.stat().st_mtime_ns for path in copies.rglob("*")}
    graph = next(path for path in before if path.suffix == ".onnx")
    graph.write_bytes(graph.read_bytes()[:-9])  # as after a full disk
    streamed = folder / front_names(plan)[1]
    streamed.with_name(f"{streamed.name}.data").touch()
    for rows, wanted in zip(
        rows_of(FrontEngine.load(folder, plan=plan, threads=1)[0]), first, strict=True
    ):
        np.testing.assert_array_equal(rows, wanted)
    assert len(list(copies.rglob("*.onnx"))) == 3


def test_storage_that_cannot_be_read_is_an_error_of_that_step(
    seeded: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plan = seeded
    (front,) = FrontEngine.load(folder, plan=plan, threads=1)
    front.forward(STEPS[0])

    def broken(self: layer_stream.StreamedLayer) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(layer_stream.StreamedLayer, "read", broken)
    with pytest.raises(FrontError, match="cannot be read from storage"):
        passes(front, 3)


def test_a_folder_that_cannot_be_written_is_named(
    seeded: tuple[Path, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(FrontError, match=f"name another folder in {FOLDER_VARIABLE}"):
        FrontEngine.load(seeded[0], plan=seeded[1], threads=1)


def test_only_the_cpu_streams(seeded: tuple[Path, Plan]) -> None:
    with pytest.raises(InputError, match="only cpu does that"):
        load_front(seeded[0], plan=seeded[1], provider="openvino")


def test_the_peak_of_a_front_twice_its_room_stays_under_the_limit(tmp_path: Path) -> None:
    folder = tmp_path / "front"
    sizes = {**SIZES, "hidden_size": 1024, "intermediate_size": 4096}
    write_seeded_front(
        folder, bits=4, blocks="small", streamed_layers=1, num_hidden_layers=12, **sizes
    )
    command = [sys.executable, "-c", MEASURE, str(folder)]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    figures = json.loads(found.stdout)
    assert 5 < figures["streamed"] < 11
    assert figures["started"] < figures["peak"] <= figures["limit"]


def test_the_fewest_layers_that_fit_are_streamed(seeded: tuple[Path, Plan]) -> None:
    _, plan = seeded

    def needed(**changes: Any) -> int:
        return int(needed_memory(replace(plan, **changes), 0.0, 1).total_bytes) + 1

    def chosen(limit: int) -> Fitting:
        return fitting(plan, limit_bytes=limit, runtime_bytes=0.0)

    assert chosen(needed(streamed_layers=0)) == Fitting(64, 0)
    assert chosen(needed(streamed_layers=4)) == Fitting(64, 4)
    assert chosen(needed(streamed_layers=4, prefill_chunk=32)) == Fitting(32, 4)
    with pytest.raises(MemoryLimitError, match="no plan of this model fits"):
        chosen(1000)
    whole = replace(plan, streamed_layers=0)
    with pytest.raises(MemoryLimitError, match=r"--stream-layers \d+ fits too"):
        fitting(whole, limit_bytes=needed(streamed_layers=4, prefill_chunk=16), runtime_bytes=0.0)


def test_a_plan_says_which_layers_can_be_streamed(seeded: tuple[Path, Plan]) -> None:
    _, plan = seeded
    assert len(front_names(plan)) == 6
    assert "streamed_layers: 3" in plan.to_yaml()
    assert "streamed_layers" not in replace(plan, streamed_layers=0).to_yaml()
    with pytest.raises(PlanError, match="0 to 4 can be read"):
        replace(plan, streamed_layers=5)


def test_a_copy_counts_once_it_is_on_the_disk(
    seeded: tuple[Path, Plan], copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a loss of power a file may have its length and not its bytes."""

    def fails(number: int) -> None:
        raise OSError(5, "Input/output error")

    folder, plan = seeded
    with monkeypatch.context() as patched:
        patched.setattr("edge.device.packed_copies.os.fsync", fails)
        with pytest.raises(FrontError, match=r"cannot keep the packed copy.*Input/output error"):
            load_front(folder, plan=plan, threads=1)
    assert not list(copies.rglob("*.json"))
    load_front(folder, plan=plan, threads=1)
    assert len(list(copies.rglob("*.json"))) == plan.streamed_layers

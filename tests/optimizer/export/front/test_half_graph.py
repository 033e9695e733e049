"""A front with 16-bit weights has a second graph for devices that compute in 16 bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from edge.device.front import FrontEngine
from edge.device.front_trial import row_difference, tried_rows
from optimizer.artifacts.bundle import front_names, open_bundle
from optimizer.artifacts.half_front import HalfRows, half_name, half_rows_of
from optimizer.artifacts.plan import Plan
from optimizer.errors import BundleError
from optimizer.export.bundle_builder import build_bundle
from optimizer.export.front.front_graph import export_front
from optimizer.export.front.half_trial import HalfTrial, added_in_halves
from optimizer.export.sources.model_source import ModelSource, open_source
from tests.optimizer.export.plans import make_plan
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_model("llama", folder)
    return open_source(folder)


def exported(source: ModelSource, plan: Plan, folder: Path) -> tuple[str, ...]:
    folder.mkdir()
    return export_front(source, plan, folder)


def graph(path: Path) -> onnx.GraphProto:
    return onnx.load(path, load_external_data=False).graph


def test_the_second_graph_computes_in_16_bits_over_the_same_weights(
    source: ModelSource, tmp_path: Path
) -> None:
    folder = tmp_path / "edge"
    assert exported(source, make_plan(source, 2, front_bits=16), folder) == ()
    wide, half = (graph(folder / name) for name in ("front.onnx", "front.fp16.onnx"))
    assert [path.name for path in folder.glob("*.data")] == ["front.onnx.data"]
    assert list(half.initializer) == list(wide.initializer)
    matrices = {each.name: each for each in half.initializer}
    products = [node for node in half.node if node.op_type == "MatMul"]
    assert len(products) == len([node for node in wide.node if node.op_type == "MatMul"]) == 10
    makers = {name: node for node in half.node for name in node.output}
    for node in products:
        assert matrices[node.input[1]].data_type == TensorProto.FLOAT16
        assert makers[node.input[0]].op_type == "Cast"
    narrowing = [node for node in half.node if node.name.endswith("/Narrow")]
    assert len(narrowing) == 8  # gate and up multiply the same rows
    assert {each.name for each in half.output} == {each.name for each in wide.output}


@pytest.mark.parametrize(("split", "splits"), [(2, ()), (2, (1, 2)), (4, ())])
def test_both_graphs_give_the_same_rows_but_for_rounding(
    source: ModelSource, tmp_path: Path, split: int, splits: tuple[int, ...]
) -> None:
    """On a processor without 16-bit kernels ONNX Runtime widens the second graph, too."""
    plan = make_plan(source, split, front_bits=16, back_start=0 if splits else None)
    plan = replace(plan, front_splits=splits)
    out = tmp_path / "bundle"
    build_bundle(source, plan, out, progress=lambda _: None)
    bundle = open_bundle(out, role="edge")
    assert all(bundle.has(f"edge/{half_name(name)}") for name in front_names(plan))
    tried = half_rows_of(bundle)
    assert tried is not None
    found = []
    for halves in (False, True):
        (engine,) = FrontEngine.load(out / "edge", plan=plan, threads=1, halves=halves)
        rows = tried_rows(engine, tried.token_ids)[-len(tried.rows) :]
        found.append(rows)
        assert row_difference(rows, tried.rows) < 2e-3
    assert row_difference(found[1], found[0]) < 2e-3


@pytest.mark.parametrize("changes", [{"front_bits": 32}, {"front_bits": 8}, {"exact_front": True}])
def test_other_fronts_have_none(
    source: ModelSource, tmp_path: Path, changes: dict[str, Any]
) -> None:
    plan = make_plan(source, 2, **{"front_bits": 16, **changes})
    exported(source, plan, tmp_path / "edge")
    assert not list((tmp_path / "edge").glob("*fp16*"))


def test_sums_that_16_bits_cannot_hold_are_refused_in_one_line(tmp_path: Path) -> None:
    model = make_tiny_model("llama", tmp_path / "plain")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight *= 3e4
            layer.mlp.down_proj.weight *= 3
    model.save_pretrained(tmp_path / "plain")
    source = open_source(tmp_path / "plain")
    report = build_bundle(
        source, make_plan(source, 2, front_bits=16), tmp_path / "out", progress=lambda _: None
    )
    assert not list((tmp_path / "out/edge").glob("*fp16*"))
    (line,) = [each for each in report.warnings if "never computed in 16 bits" in each]
    assert "mlp/" in line
    assert "float16 ends at 65,504" in line
    assert half_rows_of(open_bundle(tmp_path / "out", role="edge")) is None


def test_products_that_cancel_are_refused() -> None:
    rows = np.ones((1, 2048), dtype=np.float32)
    matrix = np.tile(np.array([[8.0], [-7.99]], dtype=np.float32), (1024, 3))
    trial = HalfTrial()
    trial.look_at({"/layer/o_proj/MatMul": (rows, matrix)})
    assert "layer/o_proj is " in trial.fault
    assert "at most 5 %" in trial.fault


def test_adding_in_halves_rounds_every_sum() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2, 40)).astype(np.float32)
    matrix = rng.standard_normal((40, 3)).astype(np.float32)
    expected = np.zeros((2, 3), dtype=np.float16)
    for k in range(40):
        x = rows[:, k : k + 1].astype(np.float16).astype(np.float64)
        step = x * matrix[k : k + 1].astype(np.float16).astype(np.float64)
        expected = (expected.astype(np.float64) + step).astype(np.float16)
    found = added_in_halves(torch.from_numpy(rows), torch.from_numpy(matrix)).numpy()
    assert np.array_equal(found, expected.astype(np.float32))
    assert not np.array_equal(found, (rows @ matrix).astype(np.float16))


def test_rows_that_are_none_are_refused(source: ModelSource, tmp_path: Path) -> None:
    plan, out = make_plan(source, 2, front_bits=16), tmp_path / "bundle"
    build_bundle(source, plan, out, progress=lambda _: None)
    bundle = open_bundle(out, role="edge")
    path = out / "edge/front.fp16.npz"
    HalfRows(np.arange(3), np.zeros((3, 7), np.float32)).save(path)
    with pytest.raises(BundleError, match="not the rows of this front"):
        half_rows_of(bundle)
    path.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(BundleError, match="not readable"):
        half_rows_of(bundle)

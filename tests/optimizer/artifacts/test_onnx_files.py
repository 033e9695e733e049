"""Where a model takes its weights from is read without `onnx`, and agrees with it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from optimizer.artifacts.onnx_files import external_files
from optimizer.errors import BundleError
from tests.conftest import ModelBench
from tests.optimizer.artifacts.onnx_bytes import field, model_with_external


def external(name: str, location: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, dtype=np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def test_every_place_of_a_tensor_is_found(tmp_path: Path) -> None:
    branch = helper.make_graph([], "branch", [], [], [external("b", "in-branch")])
    constant = helper.make_node("Constant", [], ["c"], value=external("c", "in-attribute"))
    several = helper.make_node("Odd", [], ["d"])
    several.attribute.append(helper.make_attribute("many", [external("d", "in-list")]))
    sparse = onnx.SparseTensorProto(values=external("s", "in-sparse"))
    graph = helper.make_graph(
        [helper.make_node("If", ["x"], ["y"], then_branch=branch), constant, several],
        "graph",
        [],
        [],
        [external("a", "in-graph")],
        sparse_initializer=[sparse],
    )
    function = helper.make_function(
        "own", "f", [], [], [helper.make_node("C", [], [], value=external("f", "in-function"))], []
    )
    model = helper.make_model(graph, functions=[function])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    places = {"branch", "attribute", "list", "sparse", "graph", "function"}
    assert external_files(tmp_path / "m.onnx") == {f"in-{place}" for place in places}


def test_an_exported_front_names_its_data_file(bench: ModelBench) -> None:
    front = bench.edge_bundle(2) / "edge" / "front.onnx"
    assert external_files(front) == {"front.onnx.data"}


@pytest.mark.parametrize("data", [b"", b"\x00", b"text, no model", b"\x3a\xff", b"\x0f"])
def test_what_is_no_model_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"m\.onnx: not an ONNX model"):
        external_files(tmp_path / "m.onnx")


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    graph = b""
    for _ in range(200):
        graph = field(1, field(5, field(6, graph)))
    (tmp_path / "m.onnx").write_bytes(field(7, graph))
    with pytest.raises(BundleError, match="nested deeper"):
        external_files(tmp_path / "m.onnx")


@given(st.binary(max_size=64), st.integers(0, 60))
def test_any_bytes_are_read_or_refused(tmp_path_factory, junk: bytes, at: int) -> None:
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    whole = model_with_external("x", nested=True)
    path.write_bytes(whole[:at] + junk + whole[at:])
    with contextlib.suppress(BundleError):  # and nothing else
        assert all(isinstance(name, str) for name in external_files(path))

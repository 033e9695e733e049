"""A mixed front has each layer's matrices exactly as an export at its bits has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from optimizer.artifacts.plan import Plan
from optimizer.export.front.front_graph import export_front
from optimizer.export.sources.model_source import ModelSource
from tests.conftest import ModelBench
from tests.optimizer.export.plans import make_front, make_plan, worst_row_error

LAYER_BITS = (8, 4, 8)
IDS = np.random.default_rng(3).integers(4, 300, 24)


def mixed_plan(source: ModelSource, **changes: Any) -> Plan:
    plan = make_plan(source, len(LAYER_BITS), front_bits=4, **changes)
    return replace(plan, front_layer_bits=LAYER_BITS)


def matrices(folder: Path) -> dict[str, list[np.ndarray[Any, Any]]]:
    """Codes, scales and zero points of each matrix node, by the node's name."""
    model = onnx.load(folder / "front.onnx")
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    return {
        node.name: [numpy_helper.to_array(tensors[name]) for name in node.input[1:] if name]
        for node in model.graph.node
        if node.op_type == "MatMulNBits"
    }


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_each_layer_has_its_own_bits(tiny: Any, tmp_path: Path, name: str) -> None:
    source = tiny(name).source
    found = {}
    for label, plan in (
        ("mixed", mixed_plan(source)),
        ("4", make_plan(source, 3, front_bits=4)),
        ("8", make_plan(source, 3, front_bits=8)),
    ):
        folder = tmp_path / label
        folder.mkdir()
        export_front(source, plan, folder)
        found[label] = matrices(folder)
    of_layer = {node: int(node.split("/layers.")[1].split("/")[0]) for node in found["mixed"]}
    assert sorted(set(of_layer.values())) == [0, 1, 2]
    for node, layer in of_layer.items():
        expected = found[str(LAYER_BITS[layer])][node]
        assert len(found["mixed"][node]) == len(expected)
        for mine, theirs in zip(found["mixed"][node], expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    # Nothing of the replaced matrices is left in the file.
    sizes = {
        label: (tmp_path / label / "front.onnx.data").stat().st_size
        for label in ("mixed", "4", "8")
    }
    assert sizes["4"] < sizes["mixed"] < sizes["8"]


def test_a_mixed_front_lies_between_the_uniform_ones(tiny: Any, tmp_path: Path) -> None:
    bench: ModelBench = tiny("llama")
    reference = make_front(bench.source, make_plan(bench.source, 3), tmp_path / "32").forward(IDS)
    errors = {}
    for label, plan in (
        ("mixed", mixed_plan(bench.source, exact_front=True)),
        ("4", make_plan(bench.source, 3, front_bits=4, exact_front=True)),
        ("8", make_plan(bench.source, 3, front_bits=8, exact_front=True)),
    ):
        rows = make_front(bench.source, plan, tmp_path / label).forward(IDS)
        errors[label] = worst_row_error(rows, reference)
    assert errors["8"] < errors["mixed"] < errors["4"]

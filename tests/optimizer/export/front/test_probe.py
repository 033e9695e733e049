"""A front whose layers do not give what transformers' give is not built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimizer.errors import BuildError
from optimizer.export.front.front_graph import export_front
from optimizer.export.front.layer_weights import LayerMatrix, LayerWeights
from optimizer.export.sources.model_source import open_source
from tests.optimizer.export.plans import make_plan
from tests.tiny_models import make_tiny_model


@pytest.mark.parametrize("bits", [4, 32])
def test_a_layer_that_departs_is_named_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    make_tiny_model("llama", tmp_path / "model")
    source = open_source(tmp_path / "model")
    right = LayerWeights.down

    def wrong(self: LayerWeights) -> LayerMatrix:
        factor = 1.01 if self._prefix.endswith(".1") else 1.0
        return LayerMatrix(lambda: right(self).read() * factor)

    monkeypatch.setattr(LayerWeights, "down", wrong)
    (tmp_path / "edge").mkdir()
    with pytest.raises(BuildError, match=r"layer 1 of the device's graph departs .* by \d"):
        export_front(source, make_plan(source, 3, front_bits=bits), tmp_path / "edge")
    assert list((tmp_path / "edge").iterdir()) == []


def test_a_bundle_says_how_far_its_layers_are_from_transformers(tmp_path: Path) -> None:
    make_tiny_model("olmo2", tmp_path / "model")
    source = open_source(tmp_path / "model")
    (tmp_path / "edge").mkdir()
    export_front(source, make_plan(source, 3, front_bits=4), tmp_path / "edge")
    record = json.loads((tmp_path / "edge" / "front_check.json").read_text())
    assert len(record["layers"]) == 3
    assert 0 < record["worst"] == max(record["layers"]) < 1e-5
    assert record["rows"] > 100

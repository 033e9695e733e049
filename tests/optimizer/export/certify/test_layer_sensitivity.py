"""Sensitivities are measured through the very fronts that build exports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.artifacts.sensitivity import Sensitivity
from optimizer.errors import BuildError, PlanError
from optimizer.export.certify.layer_sensitivity import (
    FrontVariants,
    measure_sensitivity,
    negative_log_likelihood,
)
from optimizer.export.layers.layered_model import LayeredModel
from tests.conftest import ModelBench
from tests.optimizer.export.plans import make_front, make_plan, worst_row_error

SPLIT = 3
WINDOWS = np.random.default_rng(5).integers(4, 300, (3, 24))


@pytest.fixture(scope="module")
def fronts(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> FrontVariants:
    return FrontVariants(tiny("llama").source, SPLIT, tmp_path_factory.mktemp("fronts"))


def test_a_variant_is_the_built_front(tiny: Any, fronts: FrontVariants, tmp_path: Path) -> None:
    bench: ModelBench = tiny("llama")
    bits = (4, 8, 4)
    plan = replace(make_plan(bench.source, SPLIT, front_bits=4), front_layer_bits=bits)
    built = make_front(bench.source, plan, tmp_path).forward(WINDOWS[0])
    assert worst_row_error(fronts.rows(bits, WINDOWS)[0], built) < 1e-4
    assert worst_row_error(fronts.rows((4, 4, 4), WINDOWS)[0], built) > 1e-2


@pytest.fixture(scope="module", params=["kept", "streamed"])
def layered(
    request: pytest.FixtureRequest, tiny: Any, tmp_path_factory: pytest.TempPathFactory
) -> LayeredModel:
    return LayeredModel(
        tiny("llama").source,
        folder=tmp_path_factory.mktemp("rows"),
        keep=request.param == "kept",
    )


def test_losses_are_what_a_layer_at_4_bits_costs(
    tiny: Any, layered: LayeredModel, fronts: FrontVariants, tmp_path: Path
) -> None:
    bench: ModelBench = tiny("llama")
    found = measure_sensitivity(bench.source, layered, split=SPLIT, windows=WINDOWS)
    assert len(found.losses) == SPLIT
    whole = negative_log_likelihood(layered, SPLIT, None, WINDOWS)
    one_narrow = negative_log_likelihood(layered, SPLIT, fronts.rows((8, 4, 8), WINDOWS), WINDOWS)
    predicted = sum(found.losses[layer][4 if layer == 1 else 8] for layer in range(SPLIT))
    assert predicted == pytest.approx(one_narrow - whole, abs=1e-6)
    path = tmp_path / "sensitivity.json"
    found.save(path)
    assert Sensitivity.load(path) == found


def test_untouched_rows_change_nothing(tiny: Any, layered: LayeredModel) -> None:
    bench: ModelBench = tiny("llama")
    import torch

    with torch.no_grad():
        rows = [
            bench.whole(torch.from_numpy(ids)[None], output_hidden_states=True).hidden_states[SPLIT]
            for ids in WINDOWS
        ]
    own = negative_log_likelihood(layered, SPLIT, None, WINDOWS)
    again = negative_log_likelihood(
        layered, SPLIT, np.stack([row[0].numpy() for row in rows]), WINDOWS
    )
    assert again == pytest.approx(own, abs=1e-6)


def test_nonsense_is_refused(tiny: Any, tmp_path: Path) -> None:
    for split in (0, 4):
        with pytest.raises(BuildError, match="1 to 3"):
            FrontVariants(tiny("llama").source, split, tmp_path)
    path = tmp_path / "x.json"
    path.write_text("{}")
    with pytest.raises(PlanError, match="no layer sensitivities"):
        Sensitivity.load(path)

"""A forecast row is what its formula says, and tables that cannot hold one are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codec.arrays import Arrays
from codec.entropy.integers import NUM_FAMILIES, Families
from codec.errors import TablesError
from codec.ladder import Ladder
from codec.levels.row_forecast import RowForecast
from codec.levels.split_model import SplitModel
from codec.tables import write_tables

D = 16


def forecast_of(model: SplitModel) -> RowForecast:
    weights = np.random.default_rng(3).standard_normal((2 * D + 1, D)) / 8
    return RowForecast.fitted(model, weights.astype(np.float32))


def empty_weights(width: int) -> Arrays:
    """Weights of the right shape that take no memory."""
    return {"forecast.weights": np.broadcast_to(np.uint16(0), (2 * width + 1, width))}


def write(path: Path, families: Families, arrays: Arrays, **changed: Any) -> None:
    levels: Arrays = {
        "q.cdf": np.repeat(families.models.cdf, 2, axis=0),
        "q.centres": np.zeros((NUM_FAMILIES, 4), dtype=np.float32),
    }
    header = {
        "hidden_size": D,
        "levels": [{"name": "q", "kind": "calibrated", "step": 0.25, "slope": 0.3, "extra": False}],
        "safe_level": "lossless",
    }
    write_tables(path, header | changed, arrays | levels)


def test_rows_follow_from_tokens_and_the_row_before(model: SplitModel) -> None:
    forecast = forecast_of(model)
    weights = forecast.halves.view(np.float16).astype(np.float64)
    before = np.linspace(-2, 2, D, dtype=np.float32)
    token_ids = [5, 9, 7, 5]  # 7 is not listed: nothing is known of it
    wanted, row = [], before.astype(np.float64)
    for predicted in model.predicted(np.array(token_ids)).astype(np.float64):
        row = predicted @ weights[:D] + row @ weights[D : 2 * D] + weights[-1]
        wanted.append(row)
    found = forecast.rows(token_ids, before)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert before[0] == -2


def test_a_forecast_comes_back_from_its_file(
    tmp_path: Path, model: SplitModel, families: Families
) -> None:
    forecast = forecast_of(model)
    write(tmp_path / "a", families, model.arrays() | forecast.arrays())
    write(tmp_path / "b", families, model.arrays())
    loaded = Ladder.load(tmp_path / "a", hidden_size=D).forecast
    assert loaded is not None
    row = np.ones(D, dtype=np.float32)
    np.testing.assert_array_equal(loaded.rows([5, 9], row), forecast.rows([5, 9], row))
    assert Ladder.load(tmp_path / "b", hidden_size=D).forecast is None
    assert Ladder.lossless(D).forecast is None


def test_weights_beyond_float16_stay_finite(model: SplitModel) -> None:
    weights = np.full((2 * D + 1, D), 1e9, dtype=np.float32)
    rows = RowForecast.fitted(model, weights).rows([5], np.ones(D, dtype=np.float32))
    assert np.isfinite(rows).all()


@pytest.mark.parametrize(
    "halves",
    [
        np.zeros((2 * D + 1, D), dtype=np.float32),
        np.zeros((2 * D, D), dtype=np.uint16),
        np.zeros((2 * D + 1, D + 1), dtype=np.uint16),
        np.zeros((2 * D + 1) * D, dtype=np.uint16),
    ],
)
def test_weights_of_another_shape_or_type_are_refused(
    tmp_path: Path, model: SplitModel, families: Families, halves: Any
) -> None:
    write(tmp_path / "a", families, model.arrays() | {"forecast.weights": halves})
    with pytest.raises(TablesError, match="does not fit a width of 16"):
        Ladder.load(tmp_path / "a", hidden_size=D)


@pytest.mark.parametrize("width", [2304, 8192])
def test_weights_of_wide_models_are_refused_before_they_are_widened(width: int) -> None:
    """A bundle's tables must not take half a gigabyte of a server."""
    model: Any = object()
    with pytest.raises(TablesError, match=f"does not fit a width of {width}"):
        RowForecast.of(empty_weights(width), model, width)


def test_the_widest_model_with_a_forecast_has_2048_values() -> None:
    model: Any = object()
    assert RowForecast.of(empty_weights(2048), model, 2048) is not None


def test_a_forecast_without_what_tokens_predict_is_refused(tmp_path: Path) -> None:
    halves = np.zeros((2 * D + 1, D), dtype=np.uint16)
    header = {"hidden_size": D, "levels": [], "safe_level": "lossless"}
    write_tables(tmp_path / "a", header, {"forecast.weights": halves})
    with pytest.raises(TablesError, match="forecast"):
        Ladder.load(tmp_path / "a", hidden_size=D)


def test_rows_that_are_driven_out_of_range_are_told_as_they_are(model: SplitModel) -> None:
    """Whoever runs them looks: a peer may send any row."""
    row = np.full(D, 3e38, dtype=np.float32)
    assert not np.isfinite(forecast_of(model).rows([5, 5, 5, 5], row)).all()

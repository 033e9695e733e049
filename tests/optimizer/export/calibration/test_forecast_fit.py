"""The forecast's fit finds rows that follow from their token and the row before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from codec.arrays import F32
from optimizer.export.calibration import forecast_fit
from optimizer.export.calibration.forecast_fit import fit_forecast
from optimizer.export.calibration.split_fit import States, fit_split

D, N, VOCAB, WINDOW = 24, 4096, 50, 64


def following(seed: int, *, count: int = N) -> States:
    """Rows x_i = P t_i + Q x_(i-1) + c and noise of 0.05, in windows that begin anew."""
    fixed = np.random.default_rng(99)
    table = fixed.standard_normal((VOCAB, D)).astype(np.float32)
    onward = (fixed.standard_normal((D, D)) / np.sqrt(D) / 2).astype(np.float32)
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, VOCAB, count)
    hidden = np.empty((count, D), dtype=np.float32)
    for at in range(count):
        before = hidden[at - 1] if at % WINDOW else rng.standard_normal(D).astype(np.float32) * 5
        noise = rng.standard_normal(D).astype(np.float32)
        hidden[at] = table[ids[at]] + before @ onward + 0.5 + 0.05 * noise
    return States(
        hidden=hidden,
        gradient=rng.standard_normal((count, D)).astype(np.float32),
        token_ids=ids,
        window=WINDOW,
        listed_ids=np.arange(VOCAB),
        listed_features=table,
    )


def share_left(states: States, found: F32, places: list[int]) -> float:
    """Of the rows' variance, what the forecast does not explain."""
    rows = states.hidden[places]
    return float(np.square(rows - found).sum() / np.square(rows - rows.mean(0)).sum())


def test_it_finds_rows_that_follow_the_rule() -> None:
    states = following(0)
    forecast = fit_forecast(fit_split(states).model, states)
    assert forecast is not None
    fresh = following(1)
    places = [at for at in range(len(fresh.hidden)) if at % WINDOW]
    found = np.concatenate(
        [forecast.rows([int(fresh.token_ids[at])], fresh.hidden[at - 1]) for at in places]
    )
    assert share_left(fresh, found, places) < 0.05  # of which noise: 0.002, int8 tables: the rest


def test_several_rows_on_end_stay_near() -> None:
    states = following(0)
    forecast = fit_forecast(fit_split(states).model, states)
    assert forecast is not None
    fresh = following(1)
    places = list(range(1, WINDOW))
    found = forecast.rows(fresh.token_ids[1:WINDOW].tolist(), fresh.hidden[0])
    assert share_left(fresh, found, places) < 0.08


def test_massive_rows_and_first_rows_teach_it_nothing() -> None:
    states = following(0)
    loud = states.hidden.copy()
    loud[5::WINDOW] *= 1000
    model = fit_split(states).model
    wild = fit_forecast(model, replace(states, hidden=loud))
    assert wild is not None
    kept = np.ones(N, dtype=bool)
    for gone in (0, 5, 6):  # a window's first row, a massive one, and the one behind it
        kept[gone::WINDOW] = False
    fresh = following(1)
    places = [at for at in range(1, N) if kept[at]]
    found = np.concatenate(
        [wild.rows([int(fresh.token_ids[at])], fresh.hidden[at - 1]) for at in places]
    )
    assert share_left(fresh, found, places) < 0.05


def test_too_few_rows_or_too_wide_a_model_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    few = following(0, count=WINDOW)  # 63 rows have one before them, and 49 values a column
    many = following(0)
    model = fit_split(many).model
    assert fit_forecast(model, few) is not None
    short = replace(few, hidden=few.hidden[:32], token_ids=few.token_ids[:32], window=32)
    assert fit_forecast(model, short) is None
    monkeypatch.setattr(forecast_fit, "may_forecast", lambda width: False)
    assert fit_forecast(model, many) is None

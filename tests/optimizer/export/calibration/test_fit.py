"""Fitting on rows made by rule: sensitivity is found where it is, targets are met, contexts pay."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from codec.ladder import Ladder
from codec.levels.calibrated_kind import CALIBRATED
from codec.levels.registry import KINDS
from codec.levels.split_model import USUAL_STEP_INDEX, FittedSplit
from codec.rows import RowCodec
from codec.tables import write_tables
from optimizer.export.calibration.error_weights import fit_sensitivity
from optimizer.export.calibration.fit import corrected, fit_ladder, target_kls
from optimizer.export.calibration.split_fit import States, fit_split

D, N, VOCAB = 24, 4096, 50


def made_up(seed: int, *, swing: float) -> States:
    """Rows with a mean and a spectrum, part of them the token's doing; gradients whose size
    depends on one direction of the row, by e^swing either way."""
    rng = np.random.default_rng(seed)
    table = np.random.default_rng(99).standard_normal((VOCAB, D)).astype(np.float32)
    ids = rng.integers(0, VOCAB, N)
    spectrum = np.exp2(-3 * np.arange(D) / D)
    rows = rng.standard_normal((N, D)) * spectrum + 0.3 * table[ids] + 5 * np.sin(np.arange(D))
    along = rows[:, 0] - 5 * np.sin(0) - 0.3 * table[ids, 0]
    size = np.exp(swing * along)
    gradient = rng.standard_normal((N, D)) * size[:, None]
    return States(
        hidden=rows.astype(np.float32),
        gradient=gradient.astype(np.float32),
        token_ids=ids,
        window=64,
        listed_ids=np.arange(VOCAB),
        listed_features=table,
    )


def test_sensitivity_finds_what_a_row_says_about_its_gradient() -> None:
    rng = np.random.default_rng(0)
    z = rng.standard_normal((N, D)).astype(np.float32)
    unit = z / np.sqrt((z.astype(np.float64) ** 2).mean(axis=1, keepdims=True))
    true = 0.6 * unit[:, 3] - 0.4 * unit[:, 7]
    error_weights = np.exp(true) * rng.chisquare(4, N) / 4
    half = np.arange(N) // 64 % 2
    weights, crossed = fit_sensitivity(z, error_weights, half)
    for found in (weights, *crossed):
        assert np.corrcoef(unit @ found[:-1] + found[-1], true)[0, 1] > 0.95
    assert (unit @ weights[:-1] + weights[-1]).mean() == pytest.approx(0, abs=0.01)


def test_where_rows_say_nothing_all_get_one_step() -> None:
    rng = np.random.default_rng(1)
    z = rng.standard_normal((N, D)).astype(np.float32)
    error_weights = rng.chisquare(1, N)
    weights, _ = fit_sensitivity(z, error_weights, np.arange(N) // 64 % 2)
    assert (z @ weights[:-1]).std() < 0.1  # nothing, or as good as nothing
    one_half, _ = fit_sensitivity(z, error_weights, np.zeros(N, dtype=np.int64))
    assert not one_half.any()


@pytest.mark.parametrize("target", [0.003, 0.03])
def test_levels_cost_on_new_rows_what_they_were_fitted_to_cost(target: float) -> None:
    fit = fit_split(made_up(0, swing=0.6))
    entry, arrays = CALIBRATED.fit("q", target, fit)
    fresh = made_up(5, swing=0.6)
    ladder = ladder_of(fit, entry, arrays)
    back = ladder.decode(
        ladder.encode("q", fresh.hidden, fresh.token_ids), num_rows=N, token_ids=fresh.token_ids
    )
    error = (back - fresh.hidden).astype(np.float64)
    cost = 0.5 * float(((fresh.gradient * error).sum(axis=1) ** 2).mean())
    assert target / 1.4 < cost < 1.4 * target


def test_steps_by_sensitivity_save_bits_at_equal_cost() -> None:
    """Against one step for all rows of the same fit: at least 0.1 bits an element."""
    states = made_up(0, swing=0.8)
    fit = fit_split(states)
    blind = replace(
        fit,
        model=replace(fit.model, sensitivity=np.zeros(D + 1, dtype=np.float32)),
        step_index=np.full_like(fit.step_index, USUAL_STEP_INDEX),
    )
    bits = [bits_of(ladder_of(of, *CALIBRATED.fit("q", 0.003, of)), states) for of in (fit, blind)]
    assert bits[0] < bits[1] - 0.1


def test_the_estimate_is_asked_for_what_comes_out_as_wanted() -> None:
    tried, measured = (0.001, 0.01, 0.1), (0.001, 0.02, 0.4)  # ratios 1, 2, 4
    assert corrected(0.02, tried, measured) == pytest.approx(0.01)
    assert corrected(0.4, tried, measured) == pytest.approx(0.1)
    assert 0.001 < corrected(0.004, tried, measured) < 0.004
    # Beyond the ends the ratio stays; what came out in the wrong order does not turn it round.
    assert corrected(0.0001, tried, measured) == pytest.approx(0.0001)
    assert corrected(4.0, tried, measured) == pytest.approx(1.0)
    assert corrected(0.003, tried, (0.002, 0.001, 0.1)) > 0


def test_levels_are_aimed_by_what_was_measured() -> None:
    """A model that loses four times the estimate gets the steps of a quarter of the aim."""
    states = made_up(0, swing=0.3)
    tried: list[int] = []

    def four_times(codecs: Sequence[RowCodec]) -> list[float]:
        tried.append(len(codecs))
        return [4 * loss for kind in KINDS for loss in kind.trial_kls]

    header, _ = fit_ladder(fit_split(states), measure=four_times)
    entries = {entry["name"]: entry for entry in header["levels"]}
    assert tried == [sum(len(kind.trial_kls) for kind in KINDS)]
    aim = target_kls()["calibrated"]["q3"]
    entry, _ = CALIBRATED.fit("q3", aim / 4, fit_split(states))
    assert entries["q3"]["step"] == pytest.approx(entry["step"])


def test_tabq_gains_from_knowing_the_channels() -> None:
    """The same codes, coded around each channel's mean and around zero."""
    states = made_up(0, swing=0.3)
    header, arrays = fit_ladder(fit_split(states))
    entry = next(level for level in header["levels"] if level["name"] == "tabq2")
    informed = 8 * len(frame_of(header, arrays, states)) / states.hidden.size
    entry["centre"] = entry["eighths"] = None
    blind = 8 * len(frame_of(header, arrays, states)) / states.hidden.size
    assert informed < blind - 0.5


def frame_of(header: dict, arrays: dict, states: States) -> bytes:
    ladder = from_file(header, arrays)
    return ladder.encode("tabq2", states.hidden, states.token_ids)


def bits_of(ladder: Ladder, states: States) -> float:
    return 8 * len(ladder.encode("q", states.hidden, states.token_ids)) / states.hidden.size


def ladder_of(fit: FittedSplit, entry: dict, arrays: dict) -> Ladder:
    model = fit.model.arrays()
    header = {"hidden_size": D, "levels": [entry], "safe_level": "lossless"}
    return from_file(header, model | arrays)


def from_file(header: dict, arrays: dict) -> Ladder:
    import tempfile
    from pathlib import Path

    path = Path(tempfile.mkdtemp()) / "tables"
    write_tables(path, dict(header), arrays)
    return Ladder.load(path, hidden_size=D)

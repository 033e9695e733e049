"""Fit a ladder's tables to hidden states, each level aimed at a loss that is measured.

The fit estimates what a step costs by the second-order expansion of KL, which errs where steps are
coarse (by 1.3 to 2 times, measured). Where there is held-out text, a few trial levels go through
the rest of the model, and the measured losses correct the aim (ours).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from codec.arrays import Arrays
from codec.levels.base import LadderTables
from codec.levels.calibrated_kind import CALIBRATED
from codec.levels.registry import KINDS, SAFE_LEVEL, coder_of
from codec.levels.row_forecast import RowForecast
from codec.levels.split_model import FittedSplit
from codec.rows import RowCodec
from optimizer.export.calibration.recall_fit import FittedRecall

_MOST_CORRECTED: Final = 8.0

# Loss of each codec in KL per token on held-out text.
Measure = Callable[[Sequence[RowCodec]], list[float]]


def fit_ladder(
    split: FittedSplit,
    *,
    measure: Measure | None = None,
    recall: FittedRecall | None = None,
    forecast: RowForecast | None = None,
) -> tuple[dict[str, Any], Arrays]:
    """Header and arrays of the default ladder: the levels of every kind that tables files hold.

    Without `measure`, levels are aimed by the estimate alone. recall: what rows share with earlier
    ones of their session; forecast: of a row; None: the tables will not say.
    """
    arrays = split.model.arrays()
    aims = target_kls()
    if measure is not None:
        aims = _aimed(split, measure, aims)
    entries = []
    for kind in KINDS:
        for name, target in aims.get(kind.name, {}).items():
            entry, found = kind.fit(name, target, split)
            entries.append(entry)
            arrays |= found
    if recall is not None:
        steps = [entry["step"] for entry in entries if entry["kind"] == CALIBRATED.name]
        arrays |= recall.model(min(steps)).arrays()
    if forecast is not None:
        arrays |= forecast.arrays()
    header = {"hidden_size": len(split.model.mean), "levels": entries, "safe_level": SAFE_LEVEL}
    return header, arrays


def target_kls() -> dict[str, dict[str, float]]:
    """The loss each level is aimed at, by kind and level: KL in nats a token.

    Perplexity rises by about as much.
    """
    return {
        kind.name: {level.name: level.target_kl for level in kind.levels}
        for kind in KINDS
        if kind.in_tables
    }


def corrected(aim: float, tried: Sequence[float], measured: Sequence[float]) -> float:
    """The estimated loss to ask for where the measured one shall be `aim`.

    tried: estimated losses, ascending; measured: what came out. Their ratio is interpolated in the
    logarithm of the measured loss and kept beyond both ends.
    """
    out = np.maximum.accumulate(np.maximum(measured, 1e-12))
    ratio = np.clip(out / np.array(tried), 1 / _MOST_CORRECTED, _MOST_CORRECTED)
    return aim / float(np.exp(np.interp(np.log(aim), np.log(out), np.log(ratio))))


def _aimed(
    split: FittedSplit, measure: Measure, targets: dict[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
    """`targets` as estimated losses that come out as those: all trials, measured together."""
    tried = [kind for kind in KINDS if kind.trial_kls and kind.name in targets]
    codecs = []
    for kind in tried:
        for loss in kind.trial_kls:
            entry, arrays = kind.fit("trial", loss, split)
            tables = LadderTables(
                arrays=arrays, model=split.model, hidden_size=len(split.model.mean)
            )
            codecs.append(coder_of(entry, tables))
    found = iter(measure(codecs))
    aims = dict(targets)
    for kind in tried:
        measured = [next(found) for _ in kind.trial_kls]
        aims[kind.name] = {
            name: corrected(aim, kind.trial_kls, measured)
            for name, aim in targets[kind.name].items()
        }
    return aims

"""Fit a ladder's tables to hidden states, each level aimed at a loss that is measured.

What a step costs is estimated by the second-order expansion of KL, which errs where steps are
coarse (by 1.3 to 2 times, measured). Where held-out text is at hand, a few trial levels go through
the rest of the model, and levels are aimed by what was found there (ours).
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from codec.rows import RowCodec
from codec.tables import Arrays, codec_of
from optimizer.export.calibration.level_fit import calibrated_level, tabq_level
from optimizer.export.calibration.split_fit import Fit, States, fit_split

# Loss of each level in KL per token; perplexity rises by about as much.
CALIBRATED_TARGETS = {"q1": 0.001, "q2": 0.003, "q3": 0.0065, "q4": 0.02, "q5": 0.06}
TABQ_TARGETS = {"tabq1": 0.001, "tabq2": 0.008, "tabq3": 0.024}
SAFE_LEVEL = "tabq1"
# Estimated losses of the levels tried on held-out text: what a row of the ladder spans.
CALIBRATED_TRIALS = (0.0015, 0.0065, 0.03)
TABQ_TRIALS = (0.0015, 0.016)
_MOST_CORRECTED = 8.0

Kind = Literal["calibrated", "tabq"]
# Loss of each codec in KL per token on held-out text.
Measure = Callable[[Sequence[RowCodec]], list[float]]


def fit_ladder(
    states: States, *, num_blocks: int = 1, measure: Measure | None = None
) -> tuple[dict[str, Any], Arrays]:
    """Header and arrays of the default ladder: lossless, q1..q5, and the TAB-Q levels beside it.

    Without `measure`, levels are aimed by the estimate alone.
    """
    fit = fit_split(states, num_blocks=num_blocks)
    arrays: Arrays = {name: getattr(fit.model, name) for name in fit.model.__dataclass_fields__}
    aims: dict[Kind, dict[str, float]] = {"calibrated": CALIBRATED_TARGETS, "tabq": TABQ_TARGETS}
    if measure is not None:
        aims = _aimed(fit, measure, aims)
    entries = []
    for kind, levels in aims.items():
        for name, target in levels.items():
            entry, found = _level(kind, name, fit, target)
            entries.append(entry)
            arrays |= found
    header = {
        "hidden_size": states.hidden.shape[1],
        "levels": entries,
        "safe_level": SAFE_LEVEL,
    }
    return header, arrays


def corrected(aim: float, tried: Sequence[float], measured: Sequence[float]) -> float:
    """The estimated loss to ask for where the measured one shall be `aim`.

    tried: estimated losses, ascending; measured: what came out. Their ratio is interpolated in the
    logarithm of the measured loss and kept beyond both ends.
    """
    out = np.maximum.accumulate(np.maximum(measured, 1e-12))
    ratio = np.clip(out / np.array(tried), 1 / _MOST_CORRECTED, _MOST_CORRECTED)
    return aim / float(np.exp(np.interp(np.log(aim), np.log(out), np.log(ratio))))


def _aimed(
    fit: Fit, measure: Measure, targets: dict[Kind, dict[str, float]]
) -> dict[Kind, dict[str, float]]:
    """`targets` as estimated losses that come out as those: all trials, measured together."""
    trials: dict[Kind, tuple[float, ...]] = {"calibrated": CALIBRATED_TRIALS, "tabq": TABQ_TRIALS}
    codecs = []
    for kind in targets:
        for loss in trials[kind]:
            entry, arrays = _level(kind, "trial", fit, loss)
            codecs.append(codec_of(entry, arrays, fit.model, len(fit.model.mean)))
    found = iter(measure(codecs))
    aims: dict[Kind, dict[str, float]] = {}
    for kind, levels in targets.items():
        tried = trials[kind]
        measured = [next(found) for _ in tried]
        aims[kind] = {name: corrected(aim, tried, measured) for name, aim in levels.items()}
    return aims


def _level(kind: Kind, name: str, fit: Fit, target: float) -> tuple[dict[str, Any], Arrays]:
    make = calibrated_level if kind == "calibrated" else tabq_level
    return make(name, fit, target)

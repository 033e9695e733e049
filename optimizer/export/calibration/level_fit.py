"""One level fitted to a split: its step or delta, and the entropy models of its codes.

The closed forms for steps and deltas are ours. They price an error by the second-order expansion of
KL, which is biased where steps are coarse: `optimizer.export.calibration.fit` corrects the aim by
measuring.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from codec.entropy import trellis
from codec.entropy.integers import ALPHABET, NUM_FAMILIES, to_symbols
from codec.entropy.rans import Models
from codec.entropy.trellis import UNITS
from codec.levels.calibrated import CalibratedCodec, SplitModel, trellis_models
from codec.levels.tabq import STEPS, TabqCodec
from codec.levels.threshold import mask_above, mask_top_k
from codec.tables import Arrays
from optimizer.export.calibration.counts import PRIOR_COUNT, count_models, mirrored, smooth_prior
from optimizer.export.calibration.split_fit import Fit

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_TAU_PERCENTILE = 99.9  # TAB-Q: larger magnitudes travel aside
_SLOPE = 0.3  # squared half steps that a bit is worth to the path search
_TURNS = 5  # step and models settle within 2 % in four
_TRIAL_ROWS = 2048


def calibrated_level(name: str, fit: Fit, target_kl: float) -> tuple[dict[str, Any], Arrays]:
    """Header entry and arrays of one calibrated level.

    KL is about half the sum of curvature, stakes and squared error over a row's components (ours;
    second-order expansion in the metric F). Step and models are found together, by turns.
    """
    rows = np.linspace(0, len(fit.components) - 1, min(len(fit.components), _TRIAL_ROWS))
    part = rows.astype(np.int64)
    size = fit.components.shape[1]
    step = float(np.sqrt(8 * target_kl / (fit.curvature * size)))
    prior = np.repeat(smooth_prior(), 2, axis=0)
    models = Models.from_counts(prior)
    centres = np.zeros((NUM_FAMILIES, 4), dtype=np.float32)
    for turn in range(_TURNS):
        last = turn == _TURNS - 1
        codec = _with(fit.model, step, models, centres)
        coded = _Coded.of(codec, fit, np.arange(len(fit.components)) if last else part)
        models = Models.from_counts(mirrored(coded.counts()) + PRIOR_COUNT * prior)
        centres = coded.centres()
        if not last:
            expected = fit.curvature / 2 * coded.mean_cost(codec, fit.stakes[part])
            step *= float(np.clip(np.sqrt(target_kl / max(expected, 1e-30)), 0.5, 2))
    entry = {"name": name, "kind": "calibrated", "step": step, "slope": _SLOPE, "extra": False}
    return entry, {f"{name}.cdf": models.cdf, f"{name}.centres": centres}


def _with(model: SplitModel, step: float, models: Models, centres: F32) -> CalibratedCodec:
    return CalibratedCodec.build(model, step, trellis_models(models.cdf, slope=_SLOPE), centres)


@dataclass(frozen=True, slots=True)
class _Coded:
    """Calibration rows after quantizing: true values and levels in half steps, models [T, D]."""

    values: F32
    levels: F32
    which: npt.NDArray[np.uint8]
    codes: npt.NDArray[np.int32]
    half_steps: F32

    @classmethod
    def of(cls, codec: CalibratedCodec, fit: Fit, rows: npt.NDArray[np.int64]) -> "_Coded":
        """Quantize these rows' components as the codec would."""
        half_steps = codec.steps(fit.fineness[rows])
        values = fit.components[rows] / half_steps[:, None]
        targets = np.rint(values * UNITS).astype(np.int32)
        offsets, _ = codec.offsets(targets)
        codes, which, _ = trellis.quantize(codec.models, targets, codec.base, offsets)
        size = np.abs(codes)
        levels = np.sign(codes) * (2 * size - np.where(size > 0, which & 1, 0))
        return cls(values, levels.astype(np.float32), which, codes, half_steps)

    def counts(self) -> F64:
        """[112, 64] times each symbol was used under each model."""
        symbols, _ = to_symbols(np.asarray(self.which >> 1, dtype=np.uint8), self.codes)
        cell = self.which.astype(np.int64) * ALPHABET + symbols
        found = np.bincount(cell.reshape(-1), minlength=2 * NUM_FAMILIES * ALPHABET)
        return found.reshape(2 * NUM_FAMILIES, ALPHABET).astype(np.float64)

    def centres(self) -> F32:
        """[56, 4] mean of what lies beyond its level, away from zero, by family and level."""
        excess = (self.values - self.levels) * np.sign(self.levels)
        kind = np.minimum(np.abs(self.levels), 3).astype(np.int64)
        cell = ((self.which >> 1).astype(np.int64) * 4 + kind).reshape(-1)
        count = np.bincount(cell, minlength=NUM_FAMILIES * 4)
        total = np.bincount(cell, weights=excess.reshape(-1), minlength=NUM_FAMILIES * 4)
        centres = (total / (count + 50)).reshape(NUM_FAMILIES, 4).astype(np.float32)
        centres[:, 0] = 0
        return centres

    def mean_cost(self, codec: CalibratedCodec, stakes: F64) -> float:
        """Mean over rows of stakes times the squared error of what arrives."""
        kind = np.minimum(np.abs(self.levels), 3).astype(np.int64)
        centre = codec.centres[self.which >> 1, kind]
        error = self.values - self.levels - np.sign(self.levels) * centre
        squared = (error.astype(np.float64) ** 2).sum(axis=1) * self.half_steps.astype(float) ** 2
        return float((stakes * squared).mean())


def tabq_level(
    name: str, fit: Fit, target_kl: float, *, top_k: int | None = None
) -> tuple[dict[str, Any], Arrays]:
    """Header entry and arrays of one TAB-Q level, with the delta that brings the target KL.

    Values beyond tau, a percentile of the calibration rows' magnitudes, travel aside; with top_k,
    that many of each row instead. "tabq.*" arrays are the same for all levels of one rule.
    """
    size = fit.dense.shape[1]
    threshold = float(np.quantile(np.abs(fit.dense), _TAU_PERCENTILE / 100))
    tau = None if top_k else np.full(size, threshold, dtype=np.float32)
    mask = mask_top_k(fit.dense, top_k or 0) if tau is None else mask_above(fit.dense, tau)
    dense = np.where(mask, np.float32(0), fit.dense)
    power = float((dense.astype(np.float64) ** 2).sum(axis=1).mean())
    trace = float((fit.slopes.astype(np.float64) ** 2).sum(axis=1).mean()) / size
    delta = float(np.sqrt(2 * target_kl / (trace * power)))
    stakes = (fit.slopes.astype(np.float64) ** 2).mean(axis=1)
    for _ in range(_TURNS):
        scales, declined = TabqCodec(hidden_size=size, delta=delta).choose_scales(dense)
        if declined.any():
            raise ValueError("calibration rows are outside TAB-Q's range of scales")
        step = np.maximum(STEPS[scales], 1e-30)[:, None]
        codes = np.rint(dense / step)
        squared = ((dense - codes * step).astype(np.float64) ** 2).sum(axis=1)
        expected = float((stakes * squared).mean()) / 2
        delta *= float(np.clip(np.sqrt(target_kl / max(expected, 1e-30)), 0.5, 2))
    kept = np.maximum((~mask).sum(axis=0), 1)
    centre = (dense.sum(axis=0, dtype=np.float64) / kept).astype(np.float32)
    spread = np.sqrt((np.where(mask, 0, dense - centre).astype(np.float64) ** 2).sum(axis=0) / kept)
    rule = f"top{top_k}" if top_k else "tau"
    arrays: Arrays = {
        f"tabq.{rule}.centre": centre,
        f"tabq.{rule}.eighths": np.rint(8 * np.log2(np.maximum(spread, 1e-9))).astype(np.int32),
    }
    if tau is not None:
        arrays["tabq.tau"] = tau
    codec = TabqCodec(
        hidden_size=size,
        delta=delta,
        centre=centre,
        eighths=arrays[f"tabq.{rule}.eighths"],
    )
    surprise = codes.astype(np.int32) - codec.expected(scales)
    surprise[mask] = 0
    family = codec.family_of(scales, codec.choose_offsets(scales, surprise))
    entry = {
        "name": name,
        "kind": "tabq",
        "delta": delta,
        "top_k": top_k or 0,
        "tau": None if top_k else "tabq.tau",
        "min_bits": 2,
        "max_bits": 12,
        "entropy": True,
        "centre": f"tabq.{rule}.centre",
        "eighths": f"tabq.{rule}.eighths",
        "extra": True,
    }
    return entry, arrays | {f"{name}.cdf": count_models(family, surprise).cdf}

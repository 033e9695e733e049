"""Fit a ladder's tables to hidden states: predictor, rotation, steps and entropy models.

Pure numpy on arrays; `optimizer.build.calibrate` collects them from a model. Sources of the parts
are in `codec.calibrated`; the closed forms for steps and deltas below are ours.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from codec import trellis
from codec.calibrated import CalibratedCodec, SplitModel, trellis_models
from codec.entropy import Models
from codec.integers import (
    ALPHABET,
    ESCAPE,
    FAMILY_OF_ONE,
    NUM_FAMILIES,
    PER_OCTAVE,
    REACH,
    SHIFTS,
    to_symbols,
)
from codec.tables import Arrays
from codec.tabq import STEPS, TabqCodec
from codec.threshold import mask_above, mask_top_k
from codec.trellis import UNITS
from optimizer.build.calib_sensitivity import fit_sensitivity

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

# Expected loss of each level in KL per token; perplexity rises by about as much.
CALIBRATED_TARGETS = {"q1": 0.001, "q2": 0.003, "q3": 0.008, "q4": 0.024, "q5": 0.06}
TABQ_TARGETS = {"tabq1": 0.001, "tabq2": 0.008, "tabq3": 0.024}
SAFE_LEVEL = "tabq1"
_TAU_SIGMAS = 12.0  # beyond this many channel rms a value travels aside
_LOUD_ROW = 3.0  # rows this many times the median rms are massive; they do not shape the statistics
_METRIC_SHRINKAGE = 0.1  # share of the identity in the gradient's second moment
_RIDGE = 1e-3
_TAU_PERCENTILE = 99.9  # TAB-Q: larger magnitudes travel aside
_SLOPE = 0.3  # squared half steps that a bit is worth to the path search
_TURNS = 5  # step and models settle within 2 % in four
_TRIAL_ROWS = 2048
_PRIOR_COUNT = 30.0  # strength of the smooth prior under each family's histogram


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """Calibration data at one split.

    hidden, gradient: [N, D], the rows entering the split and the gradient of the log-likelihood of
    a label drawn from the model itself; token_ids: [N]; window: rows per text window (N divides).
    listed_ids: [V'] sorted ids the predictor will know; listed_features: [V', D], the hidden state
    of each such token without context.
    """

    hidden: F32
    gradient: F32
    token_ids: npt.NDArray[np.int64]
    window: int
    listed_ids: npt.NDArray[np.int64]
    listed_features: F32


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A fitted split, and the calibration rows as its coders see them, massive rows left out.

    components: [N', D], y of held-out prediction; fineness: [N'], by a sensitivity fitted without
    the row;
    stakes: [N'], squared length of the gradient in y, relative to its mean; curvature: that mean
    over D; dense: [N', D], the rows themselves; slopes: [N', D], their gradients.
    """

    model: SplitModel
    components: F32
    fineness: npt.NDArray[np.uint8]
    stakes: F64
    curvature: float
    dense: F32
    slopes: F32


def fit_split(states: States, *, num_blocks: int = 1) -> Fit:
    """Mean, predictor, metric, rotation and sensitivity; num_blocks > 1: a rotation in blocks."""
    loudness = np.sqrt((states.hidden.astype(np.float64) ** 2).mean(axis=1))
    usual = loudness < _LOUD_ROW * np.median(loudness)
    hidden = states.hidden[usual].astype(np.float64)
    gradient = states.gradient[usual].astype(np.float64)
    size = hidden.shape[1]
    mean = hidden.mean(axis=0)
    centred = hidden - mean
    tau = _TAU_SIGMAS * np.sqrt((centred**2).mean(axis=0)) + 1e-6

    moment = gradient.T @ gradient / len(gradient)
    trace = max(float(np.trace(moment)) / size, 1e-30)
    metric = (1 - _METRIC_SHRINKAGE) * moment / trace + _METRIC_SHRINKAGE * np.eye(size)
    root, root_inverse = _roots(metric)

    at = np.searchsorted(states.listed_ids, states.token_ids[usual])
    at = np.minimum(at, len(states.listed_ids) - 1)
    known = states.listed_ids[at] == states.token_ids[usual]
    features = states.listed_features.astype(np.float64)
    features -= features[at[known]].mean(axis=0)  # centred on text, not on the vocabulary
    # Two halves by text window: the spread that is left must be seen on text not fitted to.
    half = np.flatnonzero(usual) // states.window % 2
    residual = centred.copy()
    for side in (0, 1):
        table = _predict_table(features, at, known & (half != side), centred)
        residual[half == side] -= table[at[half == side]] * known[half == side, None]
    table = _predict_table(features, at, known, centred)

    whitened = residual @ root
    order = np.arange(size) if num_blocks == 1 else _group_channels(whitened, num_blocks)
    forward, inverse = _block_rotations(whitened, root, root_inverse, order, num_blocks)
    blank = np.ones(size, dtype=np.float32)
    model = SplitModel(
        mean=mean.astype(np.float32),
        tau=tau.astype(np.float32),
        sigma=blank,
        forward=forward,
        inverse=inverse,
        order=order.astype(np.int32),
        token_ids=states.listed_ids.astype(np.int32),
        token_codes=np.zeros((len(table), size), dtype=np.int8),
        token_scale=blank,
        sensitivity=np.zeros(size + 1, dtype=np.float32),
    )
    # dL = g dx = (g F^-T) dy, and F^-T is the rotation of a model with transposed inverse.
    turned_about = replace(model, forward=np.ascontiguousarray(inverse.swapaxes(1, 2)))
    stakes = (turned_about.rotate(gradient.astype(np.float32)).astype(np.float64) ** 2).sum(axis=1)
    curvature = max(float(stakes.mean()) / size, 1e-30)
    stakes /= size * curvature

    rotated = model.rotate(table.astype(np.float32))
    token_scale = np.maximum(np.abs(rotated).max(axis=0, initial=0), 1e-6) / 127
    components = model.rotate(residual.astype(np.float32))
    turned = model.rotate(centred.astype(np.float32))
    sensitivity, crossed = fit_sensitivity(turned, stakes, half)
    fineness = np.empty(len(turned), dtype=np.uint8)
    for side in (0, 1):
        rows = half == side
        fineness[rows] = replace(model, sensitivity=crossed[side]).fineness(turned[rows])
    model = replace(
        model,
        sigma=np.sqrt((components.astype(np.float64) ** 2).mean(axis=0)).astype(np.float32),
        token_codes=np.rint(rotated / token_scale).astype(np.int8),
        token_scale=token_scale.astype(np.float32),
        sensitivity=sensitivity,
    )
    return Fit(
        model=model,
        components=components,
        fineness=fineness,
        stakes=stakes,
        curvature=curvature,
        dense=states.hidden[usual],
        slopes=states.gradient[usual],
    )


def calibrated_level(name: str, fit: Fit, target_kl: float) -> tuple[dict[str, Any], Arrays]:
    """Header entry and arrays of one calibrated level.

    KL is about half the sum of curvature, stakes and squared error over a row's components (ours;
    second-order expansion in the metric F). Step and models are found together, by turns.
    """
    rows = np.linspace(0, len(fit.components) - 1, min(len(fit.components), _TRIAL_ROWS))
    part = rows.astype(np.int64)
    size = fit.components.shape[1]
    step = float(np.sqrt(8 * target_kl / (fit.curvature * size)))
    prior = np.repeat(_prior(), 2, axis=0)
    models = Models.from_counts(prior)
    centres = np.zeros((NUM_FAMILIES, 4), dtype=np.float32)
    for turn in range(_TURNS):
        last = turn == _TURNS - 1
        codec = _with(fit.model, step, models, centres)
        coded = _Coded.of(codec, fit, np.arange(len(fit.components)) if last else part)
        models = Models.from_counts(_mirrored(coded.counts()) + _PRIOR_COUNT * prior)
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


def fit_ladder(states: States, *, num_blocks: int = 1) -> tuple[dict[str, Any], Arrays]:
    """Header and arrays of the default ladder: lossless, q1..q5, and the TAB-Q levels beside it."""
    fit = fit_split(states, num_blocks=num_blocks)
    arrays: Arrays = {name: getattr(fit.model, name) for name in fit.model.__dataclass_fields__}
    entries = []
    for name, target in CALIBRATED_TARGETS.items():
        entry, found = calibrated_level(name, fit, target)
        entries.append(entry)
        arrays |= found
    for name, target in TABQ_TARGETS.items():
        entry, found = tabq_level(name, fit, target)
        entries.append(entry)
        arrays |= found
    header = {
        "hidden_size": states.hidden.shape[1],
        "levels": entries,
        "safe_level": SAFE_LEVEL,
    }
    return header, arrays


def count_models(family: npt.NDArray[np.uint8], codes: npt.NDArray[np.int32]) -> Models:
    """Models from counting codes under their families, symmetric, on top of a smooth prior."""
    symbols, _ = to_symbols(family, codes)
    cell = family.astype(np.int64) * ALPHABET + symbols
    counts = np.bincount(cell.reshape(-1), minlength=NUM_FAMILIES * ALPHABET)
    per_family = counts.reshape(NUM_FAMILIES, ALPHABET).astype(np.float64)
    return Models.from_counts(_mirrored(per_family) + _PRIOR_COUNT * _prior())


def _mirrored(counts: F64) -> F64:
    """Counts [K, 64], K a multiple of the families, made the same for codes q and -q."""
    # With plain low bits the high parts -1 and 0 mirror each other, not -1 and 1.
    plain = np.repeat(SHIFTS == 0, len(counts) // NUM_FAMILIES)
    even = counts.copy()
    even[plain, :ESCAPE] = (counts[plain, :ESCAPE] + counts[plain, :ESCAPE][:, ::-1]) / 2
    return even


def _prior() -> F64:
    """[56, 64]: a two-sided exponential of each family's scale, with a floor for surprises."""
    scale = 2.0 ** ((np.arange(NUM_FAMILIES) - FAMILY_OF_ONE) / PER_OCTAVE - SHIFTS)
    middle = np.arange(-REACH, REACH + 1) + np.where(SHIFTS > 0, 0.5, 0.0)[:, None]
    shape = np.exp(-np.abs(middle) / np.maximum(0.75 * scale, 0.15)[:, None])
    shape /= shape.sum(axis=1, keepdims=True)
    escape = np.full((NUM_FAMILIES, 1), 1e-4)
    return np.concatenate([0.98 * shape + 0.02 / ESCAPE, escape], axis=1)


def _roots(metric: F64) -> tuple[F64, F64]:
    values, vectors = np.linalg.eigh(metric)
    root = np.sqrt(np.maximum(values, 1e-9))
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


def _predict_table(
    features: F64, at: npt.NDArray[np.int64], use: npt.NDArray[np.bool_], target: F64
) -> F64:
    """Ridge regression from token features [V', D] to rows; returns predictions [V', D]."""
    x = features[at[use]]
    gram = x.T @ x
    gram += np.eye(len(gram)) * (_RIDGE * np.trace(gram) / len(gram) + 1e-9)
    return features @ np.linalg.solve(gram, x.T @ target[use])


def _block_rotations(
    whitened: F64, root: F64, root_inverse: F64, order: npt.NDArray[np.int64], num_blocks: int
) -> tuple[F32, F32]:
    """Eigenbases: of the whole whitened covariance, or per block of the plain one."""
    size = len(root)
    if num_blocks == 1:
        basis = _eigenbasis(whitened)
        forward, inverse = root @ basis, basis.T @ root_inverse
        return forward[None].astype(np.float32), inverse[None].astype(np.float32)
    # A full metric would mix blocks; a block rotation keeps only its diagonal.
    weight = np.sqrt(np.diag(root @ root))
    plain = whitened @ root_inverse * weight
    forwards, inverses = [], []
    for block in order.reshape(num_blocks, size // num_blocks):
        basis = _eigenbasis(plain[:, block])
        forwards.append(weight[block][:, None] * basis)
        inverses.append(basis.T / weight[block])
    return np.stack(forwards).astype(np.float32), np.stack(inverses).astype(np.float32)


def _eigenbasis(rows: F64) -> F64:
    """Eigenvectors of the covariance, largest variance first, as columns."""
    _, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    return vectors[:, ::-1]


def _group_channels(rows: F64, num_blocks: int) -> npt.NDArray[np.int64]:
    """An order of channels that puts correlated ones into the same block, greedily."""
    size = rows.shape[1]
    correlation = np.abs(np.corrcoef(rows.T))
    free, order = np.ones(size, dtype=np.bool_), []
    for _ in range(num_blocks):
        # Grow a block from the channel with most correlation left, always adding the closest.
        first = int(np.argmax(np.where(free, (correlation * free).sum(axis=1), -1)))
        block, pull = [first], correlation[first] ** 2
        free[first] = False
        while len(block) < size // num_blocks:
            best = int(np.argmax(np.where(free, pull, -1)))
            free[best] = False
            block.append(best)
            pull = pull + correlation[best] ** 2
        order.extend(block)
    return np.array(order)

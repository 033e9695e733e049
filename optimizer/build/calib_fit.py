"""Fit a ladder's tables to hidden states: predictor, rotation, steps and entropy models.

Pure numpy on arrays; `optimizer.build.calibrate` collects them from a model. Sources of the parts
are in `codec.calibrated`; the closed forms for steps and deltas below are ours.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from codec.calibrated import CalibratedCodec, SplitModel
from codec.entropy import Models
from codec.integers import (
    ALPHABET,
    ESCAPE,
    FAMILY_OF_ONE,
    NUM_FAMILIES,
    PER_OCTAVE,
    REACH,
    SHIFTS,
    Families,
    family_of_scale,
    to_symbols,
)
from codec.tables import Arrays
from codec.tabq import STEPS, TabqCodec
from codec.threshold import mask_top_k

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
    """A fitted split: the shared model, held-out components y [N', D], and the loss curvature."""

    model: SplitModel
    components: F32
    curvature: float
    dense: F32


def fit_split(states: States, *, num_blocks: int = 1) -> Fit:
    """Mean, predictor, metric and rotation. num_blocks > 1 makes the rotation block-diagonal."""
    loudness = np.sqrt((states.hidden.astype(np.float64) ** 2).mean(axis=1))
    usual = loudness < _LOUD_ROW * np.median(loudness)
    hidden = states.hidden[usual].astype(np.float64)
    gradient = states.gradient[usual].astype(np.float64)
    size = hidden.shape[1]
    mean = hidden.mean(axis=0)
    centred = hidden - mean
    tau = _TAU_SIGMAS * np.sqrt((centred**2).mean(axis=0)) + 1e-6

    moment = gradient.T @ gradient / len(gradient)
    curvature = max(float(np.trace(moment)) / size, 1e-30)
    metric = (1 - _METRIC_SHRINKAGE) * moment / curvature + _METRIC_SHRINKAGE * np.eye(size)
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
    scale = np.ones(size)
    model = SplitModel(
        mean=mean.astype(np.float32),
        tau=tau.astype(np.float32),
        sigma=scale.astype(np.float32),
        forward=forward,
        inverse=inverse,
        order=order.astype(np.int32),
        token_ids=states.listed_ids.astype(np.int32),
        token_codes=np.zeros((len(table), size), dtype=np.int8),
        token_scale=scale.astype(np.float32),
    )
    rotated = model.rotate(table.astype(np.float32))
    token_scale = np.maximum(np.abs(rotated).max(axis=0, initial=0), 1e-6) / 127
    components = model.rotate(residual.astype(np.float32))
    model = SplitModel(
        mean=model.mean,
        tau=model.tau,
        sigma=np.sqrt((components.astype(np.float64) ** 2).mean(axis=0)).astype(np.float32),
        forward=forward,
        inverse=inverse,
        order=model.order,
        token_ids=model.token_ids,
        token_codes=np.rint(rotated / token_scale).astype(np.int8),
        token_scale=token_scale.astype(np.float32),
    )
    return Fit(model=model, components=components, curvature=curvature, dense=states.hidden[usual])


def calibrated_level(name: str, fit: Fit, target_kl: float) -> tuple[dict[str, Any], Arrays]:
    """Header entry and arrays of one calibrated level.

    KL is about curvature / 2 times the squared error in the metric; each of D components adds
    step^2 / 12.
    """
    size = fit.components.shape[1]
    step = float(np.sqrt(24 * target_kl / (fit.curvature * size)))
    blank = Families(models=Models.from_counts(_prior()))
    codec = CalibratedCodec.build(fit.model, step, blank, np.zeros((NUM_FAMILIES, 4), np.float32))
    scaled = fit.components / np.float32(step)
    loud = np.maximum(np.abs(scaled) @ codec.loudness, 1e-6)
    offsets = np.clip(np.rint(PER_OCTAVE * np.log2(loud)), -8, 7).astype(np.int64)
    family = codec.family_of(offsets)
    codes = np.rint(scaled).astype(np.int32)
    magnitude = np.minimum(np.abs(codes), 3)
    excess = (scaled - codes) * np.sign(codes)
    cell = family.astype(np.int64) * 4 + magnitude
    count = np.bincount(cell.reshape(-1), minlength=NUM_FAMILIES * 4)
    total = np.bincount(cell.reshape(-1), weights=excess.reshape(-1), minlength=NUM_FAMILIES * 4)
    centres = (total / (count + 50)).reshape(NUM_FAMILIES, 4).astype(np.float32)
    centres[:, 0] = 0
    entry = {"name": name, "kind": "calibrated", "step": step, "extra": False}
    return entry, {f"{name}.cdf": count_models(family, codes).cdf, f"{name}.centres": centres}


def tabq_level(
    name: str, fit: Fit, target_kl: float, *, top_k: int = 4
) -> tuple[dict[str, Any], Arrays]:
    """Header entry and arrays of one TAB-Q level, with the delta that the target KL allows."""
    size = fit.dense.shape[1]
    dense = np.where(mask_top_k(fit.dense, top_k), np.float32(0), fit.dense)
    power = float((dense.astype(np.float64) ** 2).sum(axis=1).mean())
    delta = float(np.sqrt(2 * target_kl / (fit.curvature * power)))
    codec = TabqCodec(hidden_size=size, delta=delta, top_k=top_k)
    scales, declined = codec.choose_scales(dense)
    if declined.any():
        raise ValueError("calibration rows are outside TAB-Q's range of scales")
    codes = np.rint(dense / np.maximum(STEPS[scales], 1e-30)[:, None]).astype(np.int32)
    spread = 1.25 * np.abs(codes).astype(np.float64).mean(axis=1)
    family = np.repeat(family_of_scale(spread)[:, None], size, axis=1)
    entry = {
        "name": name,
        "kind": "tabq",
        "delta": delta,
        "top_k": top_k,
        "tau": None,
        "min_bits": 2,
        "max_bits": 12,
        "entropy": True,
        "extra": True,
    }
    return entry, {f"{name}.cdf": count_models(family, codes).cdf}


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
    counts = counts.reshape(NUM_FAMILIES, ALPHABET).astype(np.float64)
    plain = SHIFTS == 0  # with plain low bits the high parts -1 and 0 mirror each other, not -1, 1
    mirrored = counts.copy()
    mirrored[:, :ESCAPE] = counts[:, :ESCAPE][:, ::-1]
    counts[plain] = (counts[plain] + mirrored[plain]) / 2
    return Models.from_counts(counts + _PRIOR_COUNT * _prior())


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

"""What all levels of a split share, fitted to its hidden states: mean, predictor, rotation, metric.

Pure numpy on arrays; `optimizer.export.calibration.calibrate` collects them from a model. Sources
of the parts are in `codec.levels.calibrated`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from codec.arrays import F32, F64, I8, I64, Mask
from codec.levels.split_model import FittedSplit, SplitModel
from optimizer.export.calibration.error_weights import fit_sensitivity

_TAU_SIGMAS: Final = 12.0  # beyond this many channel rms a value is an outlier
# Rows this many times the median rms are massive; the statistics leave them out.
_LOUD_ROW: Final = 3.0
_METRIC_SHRINKAGE: Final = 0.1  # share of the identity in the gradient's second moment
_RIDGE: Final = 1e-3
_PART: Final = 4096  # tokens at a time


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
    token_ids: I64
    window: int
    listed_ids: I64
    listed_features: F32


def fit_split(states: States, *, num_blocks: int = 1) -> FittedSplit:
    """Mean, predictor, metric, rotation and sensitivity; num_blocks > 1: a rotation in blocks."""
    loudness = np.sqrt((states.hidden.astype(np.float64) ** 2).mean(axis=1))
    usual = loudness < _LOUD_ROW * np.median(loudness)
    # Arrays of all rows are as large as a layer of the model: as few as can be live at a time.
    centred = states.hidden[usual].astype(np.float64)
    size = centred.shape[1]
    mean = centred.mean(axis=0)
    centred -= mean
    tau = _TAU_SIGMAS * np.sqrt((centred**2).mean(axis=0)) + 1e-6

    metric = _loss_metric(states.gradient[usual])
    root, root_inverse = _roots(metric)

    # What the predictor knows of each row: the features of its token, centred on text and not on
    # the vocabulary. Rows of one token share them.
    at = np.searchsorted(states.listed_ids, states.token_ids[usual])
    at = np.minimum(at, len(states.listed_ids) - 1)
    known = states.listed_ids[at] == states.token_ids[usual]
    seen, at = np.unique(at, return_inverse=True)
    features = states.listed_features[seen].astype(np.float64)
    centre = features[at[known]].mean(axis=0)
    features -= centre
    # Two halves by text window: the spread that is left must be seen on text not fitted to.
    half = np.flatnonzero(usual) // states.window % 2
    residual = centred.copy()
    for side in (0, 1):
        by_features = _ridge(features, at, known & (half != side), centred)
        rows = known & (half == side)
        residual[rows] -= features[at[rows]] @ by_features
    by_features = _ridge(features, at, known, centred)

    whitened = residual @ root
    order = np.arange(size) if num_blocks == 1 else _group_channels(whitened, num_blocks)
    forward, inverse = _block_rotations(whitened, root, root_inverse, order, num_blocks)
    del whitened
    blank = np.ones(size, dtype=np.float32)
    model = SplitModel(
        mean=mean.astype(np.float32),
        tau=tau.astype(np.float32),
        sigma=blank,
        forward=forward,
        inverse=inverse,
        order=order.astype(np.int32),
        token_ids=states.listed_ids.astype(np.int32),
        token_codes=np.zeros((len(states.listed_ids), size), dtype=np.int8),
        token_scale=blank,
        sensitivity=np.zeros(size + 1, dtype=np.float32),
    )
    # dL = g dx = (g F^-T) dy, and F^-T is the rotation of a model with transposed inverse.
    transposed = replace(model, forward=np.ascontiguousarray(inverse.swapaxes(1, 2)))
    slopes = states.gradient[usual]
    error_weights = (transposed.rotate(slopes).astype(np.float64) ** 2).sum(axis=1)
    curvature = max(float(error_weights.mean()) / size, 1e-30)
    error_weights /= size * curvature

    token_codes, token_scale = _token_codes(states.listed_features, centre, by_features, model)
    components = model.rotate(residual.astype(np.float32))
    del residual
    rotated = model.rotate(centred.astype(np.float32))
    del centred
    sensitivity, crossed = fit_sensitivity(rotated, error_weights, half)
    step_index = np.empty(len(rotated), dtype=np.uint8)
    for side in (0, 1):
        rows = half == side
        step_index[rows] = replace(model, sensitivity=crossed[side]).step_index(rotated[rows])
    model = replace(
        model,
        sigma=np.sqrt((components.astype(np.float64) ** 2).mean(axis=0)).astype(np.float32),
        token_codes=token_codes,
        token_scale=token_scale,
        sensitivity=sensitivity,
    )
    return FittedSplit(
        model=model,
        components=components,
        step_index=step_index,
        error_weights=error_weights,
        curvature=curvature,
        dense=states.hidden[usual],
        slopes=slopes,
    )


def _loss_metric(gradient: F32) -> F64:
    """Second moment of the gradients [N, D] at unit trace, shrunk towards the identity; [D, D]."""
    rows = gradient.astype(np.float64)
    size = rows.shape[1]
    moment = rows.T @ rows / len(rows)
    trace = max(float(np.trace(moment)) / size, 1e-30)
    return np.asarray((1 - _METRIC_SHRINKAGE) * moment / trace + _METRIC_SHRINKAGE * np.eye(size))


def _roots(metric: F64) -> tuple[F64, F64]:
    values, vectors = np.linalg.eigh(metric)
    root = np.sqrt(np.maximum(values, 1e-9))
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


def _ridge(features: F64, at: I64, use: Mask, target: F64) -> F64:
    """Ridge regression from token features [V', D] to the rows in use; coefficients [D, D]."""
    x = features[at[use]]
    gram = x.T @ x
    gram += np.eye(len(gram)) * (_RIDGE * np.trace(gram) / len(gram) + 1e-9)
    return np.asarray(np.linalg.solve(gram, x.T @ target[use]))


def _token_codes(features: F32, centre: F64, by_features: F64, model: SplitModel) -> tuple[I8, F32]:
    """What each listed token predicts, in the rotated space: codes [V', D] and a scale [D].

    features: [V', D]. A part of the tokens at a time, as their number has no bound by the width.
    """
    predictions = np.empty(features.shape, dtype=np.float32)
    parts = [slice(begin, begin + _PART) for begin in range(0, len(features), _PART)]
    for part in parts:
        predicted = (features[part].astype(np.float64) - centre) @ by_features
        predictions[part] = model.rotate(predicted.astype(np.float32))
    largest = np.maximum(predictions.max(axis=0, initial=0), -predictions.min(axis=0, initial=0))
    scale = np.maximum(largest, 1e-6) / 127
    codes = np.empty(features.shape, dtype=np.int8)
    for part in parts:
        codes[part] = np.rint(predictions[part] / scale)
    return codes, scale.astype(np.float32)


def _block_rotations(
    whitened: F64, root: F64, root_inverse: F64, order: I64, num_blocks: int
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


def _group_channels(rows: F64, num_blocks: int) -> I64:
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

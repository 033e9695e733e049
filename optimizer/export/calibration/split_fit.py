"""What all levels of a split share, fitted to its hidden states: mean, predictor, rotation, metric.

Pure numpy on arrays; `optimizer.export.calibration.calibrate` collects them from a model. Sources
of the parts are in `codec.levels.calibrated`.
"""

from __future__ import annotations

from collections.abc import Iterator
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
_PART: Final = 2048  # rows or tokens at a time


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
    usual = usual_rows(states.hidden)
    # Arrays of all rows are as large as a layer of the model: float32, and few at a time.
    dense, slopes = states.hidden[usual], states.gradient[usual]
    size = dense.shape[1]
    mean = dense.mean(axis=0, dtype=np.float64)
    centred = dense - mean.astype(np.float32)
    variance = np.einsum("nd,nd->d", centred, centred, dtype=np.float64) / len(centred)
    tau = _TAU_SIGMAS * np.sqrt(variance) + 1e-6

    # What the predictor knows of each row: the features of its token, centred on text and not on
    # the vocabulary. Rows of one token share them.
    at = np.searchsorted(states.listed_ids, states.token_ids[usual])
    at = np.minimum(at, len(states.listed_ids) - 1)
    known = states.listed_ids[at] == states.token_ids[usual]
    seen, at = np.unique(at, return_inverse=True)
    features = states.listed_features[seen]
    centre = _weighted_mean(features, np.bincount(at[known], minlength=len(seen)))
    features -= centre
    # Two halves by text window: the spread that is left must be seen on text not fitted to.
    half = np.flatnonzero(usual) // states.window % 2
    residual = centred.copy()
    for side in (0, 1):
        by_features = _ridge(features, at, known & (half != side), centred)
        for rows in _parts(np.flatnonzero(known & (half == side))):
            residual[rows] -= features[at[rows]] @ by_features
    by_features = _ridge(features, at, known, centred)
    del features

    forward, inverse, order = _rotation(
        _second_moment(residual), residual.mean(axis=0), _loss_metric(slopes), num_blocks
    )
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
    error_weights = _squared_lengths(transposed.rotate(slopes))
    curvature = max(float(error_weights.mean()) / size, 1e-30)
    error_weights /= size * curvature

    token_codes, token_scale = _token_codes(states.listed_features, centre, by_features, model)
    components = model.rotate(residual)
    del residual
    rotated = model.rotate(centred)
    del centred
    sensitivity, crossed = fit_sensitivity(rotated, error_weights, half)
    step_index = np.empty(len(rotated), dtype=np.uint8)
    for side in (0, 1):
        rows = half == side
        step_index[rows] = replace(model, sensitivity=crossed[side]).step_index(rotated[rows])
    model = replace(
        model,
        sigma=np.sqrt(
            np.einsum("nd,nd->d", components, components, dtype=np.float64) / len(components)
        ).astype(np.float32),
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
        dense=dense,
        slopes=slopes,
    )


def usual_rows(hidden: F32) -> Mask:
    """Which rows [N] are not massive."""
    loudness = np.sqrt(_squared_lengths(hidden) / hidden.shape[1])
    return np.asarray(loudness < _LOUD_ROW * np.median(loudness))


def _squared_lengths(rows: F32) -> F64:
    return np.asarray(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))


def _parts(rows: I64) -> Iterator[I64]:
    for begin in range(0, len(rows), _PART):
        yield rows[begin : begin + _PART]


def _second_moment(rows: F32) -> F64:
    """Mean of x x^T over rows x of [N, D]; [D, D]."""
    moment = np.zeros((rows.shape[1], rows.shape[1]))
    for part in _parts(np.arange(len(rows))):
        wide = rows[part].astype(np.float64)
        moment += wide.T @ wide
    return moment / len(rows)


def _weighted_mean(rows: F32, weights: I64) -> F32:
    """Mean of rows [N, D], each counted so many times; [D]."""
    total = np.einsum("nd,n->d", rows, weights, dtype=np.float64)
    return np.asarray(total / weights.sum(), dtype=np.float32)


def _loss_metric(gradient: F32) -> F64:
    """Second moment of the gradients [N, D] at unit trace, shrunk towards the identity; [D, D]."""
    moment = _second_moment(gradient)
    size = len(moment)
    trace = max(float(np.trace(moment)) / size, 1e-30)
    return np.asarray((1 - _METRIC_SHRINKAGE) * moment / trace + _METRIC_SHRINKAGE * np.eye(size))


def _roots(metric: F64) -> tuple[F64, F64]:
    values, vectors = np.linalg.eigh(metric)
    root = np.sqrt(np.maximum(values, 1e-9))
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


def _ridge(features: F32, at: I64, use: Mask, target: F32) -> F32:
    """Ridge regression from token features [V', D] to the rows in use; coefficients [D, D]."""
    size = features.shape[1]
    gram, cross = np.zeros((size, size)), np.zeros((size, size))
    for rows in _parts(np.flatnonzero(use)):
        x = features[at[rows]].astype(np.float64)
        gram += x.T @ x
        cross += x.T @ target[rows]
    gram += np.eye(size) * (_RIDGE * np.trace(gram) / size + 1e-9)
    return np.asarray(np.linalg.solve(gram, cross), dtype=np.float32)


def _token_codes(features: F32, centre: F32, by_features: F32, model: SplitModel) -> tuple[I8, F32]:
    """What each listed token predicts, in the rotated space: codes [V', D] and a scale [D].

    features: [V', D]. A part of the tokens at a time, as their number has no bound by the width.
    """
    predictions = np.empty(features.shape, dtype=np.float32)
    parts = [slice(begin, begin + _PART) for begin in range(0, len(features), _PART)]
    for part in parts:
        predicted = np.asarray((features[part] - centre) @ by_features, dtype=np.float32)
        predictions[part] = model.rotate(predicted)
    largest = np.maximum(predictions.max(axis=0, initial=0), -predictions.min(axis=0, initial=0))
    scale = np.maximum(largest, 1e-6) / 127
    codes = np.empty(features.shape, dtype=np.int8)
    for part in parts:
        codes[part] = np.rint(predictions[part] / scale)
    return codes, scale.astype(np.float32)


def _rotation(moment: F64, mean: F32, metric: F64, num_blocks: int) -> tuple[F32, F32, I64]:
    """Rotation and inverse [B, D / B, D / B], and the order of channels in its blocks.

    moment, mean: of the rows that are rotated. One block: the eigenbasis of their whitened second
    moment. More: of each block of the plain one, since a full metric would mix blocks; a block
    rotation keeps only its diagonal.
    """
    root, root_inverse = _roots(metric)
    whitened = root @ moment @ root
    size = len(root)
    if num_blocks == 1:
        basis = _eigenbasis(whitened)
        forward, inverse = root @ basis, basis.T @ root_inverse
        order = np.arange(size)
        return forward[None].astype(np.float32), inverse[None].astype(np.float32), order
    off = root @ mean.astype(np.float64)
    order = _group_channels(whitened - np.outer(off, off), num_blocks)
    weight = np.sqrt(np.diag(metric))
    forwards, inverses = [], []
    for block in order.reshape(num_blocks, size // num_blocks):
        basis = _eigenbasis(moment[np.ix_(block, block)] * np.outer(weight[block], weight[block]))
        forwards.append(weight[block][:, None] * basis)
        inverses.append(basis.T / weight[block])
    return np.stack(forwards).astype(np.float32), np.stack(inverses).astype(np.float32), order


def _eigenbasis(moment: F64) -> F64:
    """Eigenvectors, largest variance first, as columns."""
    _, vectors = np.linalg.eigh(moment)
    return vectors[:, ::-1]


def _group_channels(covariance: F64, num_blocks: int) -> I64:
    """An order of channels that puts correlated ones into the same block, greedily."""
    size = len(covariance)
    spread = np.sqrt(np.maximum(np.diag(covariance), 1e-30))
    correlation = np.abs(covariance / np.outer(spread, spread))
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

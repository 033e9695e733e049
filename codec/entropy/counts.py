"""Entropy models from counts: symmetric, and on top of a smooth prior."""

from __future__ import annotations

from typing import Final

import numpy as np

from codec.arrays import F64, I32, U8
from codec.entropy.integers import (
    ALPHABET,
    ESCAPE,
    FAMILY_OF_ONE,
    NUM_FAMILIES,
    PER_OCTAVE,
    REACH,
    SHIFTS,
    to_symbols,
)
from codec.entropy.rans import Models

PRIOR_COUNT: Final = 30.0  # strength of the smooth prior under each family's histogram


def count_symbols(family: U8, codes: I32) -> F64:
    """[56, 64] times each symbol occurs under its family; family and codes have one shape."""
    symbols, _ = to_symbols(family, codes)
    cell = family.astype(np.int64) * ALPHABET + symbols
    counts = np.bincount(cell.reshape(-1), minlength=NUM_FAMILIES * ALPHABET)
    return counts.reshape(NUM_FAMILIES, ALPHABET).astype(np.float64)


def count_models(counts: F64) -> Models:
    """Models from `count_symbols`, symmetric, on top of a smooth prior."""
    return Models.from_counts(mirrored(counts) + PRIOR_COUNT * smooth_prior())


def mirrored(counts: F64) -> F64:
    """Counts [K, 64], K a multiple of the families, made the same for codes q and -q."""
    # With plain low bits the high parts -1 and 0 mirror each other, not -1 and 1.
    plain = np.repeat(SHIFTS == 0, len(counts) // NUM_FAMILIES)
    even = counts.copy()
    even[plain, :ESCAPE] = (counts[plain, :ESCAPE] + counts[plain, :ESCAPE][:, ::-1]) / 2
    return even


def smooth_prior() -> F64:
    """[56, 64]: a two-sided exponential of each family's scale, with a floor for surprises."""
    scale = 2.0 ** ((np.arange(NUM_FAMILIES) - FAMILY_OF_ONE) / PER_OCTAVE - SHIFTS)
    middle = np.arange(-REACH, REACH + 1) + np.where(SHIFTS > 0, 0.5, 0.0)[:, None]
    shape = np.exp(-np.abs(middle) / np.maximum(0.75 * scale, 0.15)[:, None])
    shape /= shape.sum(axis=1, keepdims=True)
    escape = np.full((NUM_FAMILIES, 1), 1e-4)
    return np.concatenate([0.98 * shape + 0.02 / ESCAPE, escape], axis=1)

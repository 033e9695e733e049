"""The trellis loops in the compiled kernel, by ctypes; see `codec.entropy.trellis`."""

from __future__ import annotations

import numpy as np

from codec.arrays import F32, I8, I32, I64, U8, U16, U32
from codec.entropy.rans import Models
from codec.errors import FrameError
from codec.kernel.library import the_kernel


def loudness(targets: I32, weights: I32) -> I64:
    """Same contract and results as `codec.entropy.trellis_numpy.loudness`."""
    out = np.empty(len(targets), dtype=np.int64)
    the_kernel().row_loudness(
        targets.ctypes.data,
        targets.shape[0],
        targets.shape[1],
        weights.ctypes.data,
        out.ctypes.data,
    )
    return out


def quantize(costs: U16, targets: I32, base: U8, offsets: I8) -> tuple[I32, U8, I32]:
    """Same contract and results as `codec.entropy.trellis_numpy.quantize`."""
    num_rows, width = targets.shape
    codes = np.empty(targets.shape, dtype=np.int32)
    model_ids = np.empty(targets.shape, dtype=np.uint8)
    escapes = np.empty(num_rows, dtype=np.int32)
    candidates = np.empty(4 * width, dtype=np.int32)
    taken = np.empty(width, dtype=np.uint8)
    result = the_kernel().trellis_quantize(
        targets.ctypes.data,
        num_rows,
        width,
        base.ctypes.data,
        offsets.ctypes.data,
        costs.ctypes.data,
        codes.ctypes.data,
        model_ids.ctypes.data,
        escapes.ctypes.data,
        candidates.ctypes.data,
        taken.ctypes.data,
    )
    if result == -2:
        raise ValueError("a target is too large for the trellis")
    if result < 0:
        raise ValueError(f"rows of {width} values are too wide for the trellis")
    return codes, model_ids, escapes


def encode(cdf: U16, model_ids: U8, codes: I32, states: U32) -> U16:
    """Same contract and words as `codec.entropy.trellis_numpy.encode`."""
    num_rows, width = codes.shape
    model_ids, codes = np.ascontiguousarray(model_ids), np.ascontiguousarray(codes)
    # A value emits at most one word for its symbol and two for an escape.
    capacity = 3 * codes.size
    words = np.empty(capacity, dtype=np.uint16)
    num_words = the_kernel().trellis_encode(
        cdf.ctypes.data,
        model_ids.ctypes.data,
        codes.ctypes.data,
        num_rows,
        width,
        len(states),
        states.ctypes.data,
        words.ctypes.data,
        capacity,
    )
    if num_words < 0:
        raise IndexError("model outside the tables")
    return words[capacity - num_words :]


def decode(
    models: Models, centres: F32, base: U8, offsets: I8, states: U32, body: U8
) -> tuple[F32, int]:
    """Same contract and values as `codec.entropy.trellis_numpy.decode`."""
    out = np.empty((len(offsets), len(base)), dtype=np.float32)
    used = the_kernel().trellis_decode(
        models.cdf.ctypes.data,
        models.lut.ctypes.data,
        base.ctypes.data,
        offsets.ctypes.data,
        centres.ctypes.data,
        out.ctypes.data,
        out.shape[0],
        out.shape[1],
        len(states),
        states.ctypes.data,
        body.ctypes.data,
        len(body) // 2,
    )
    if used < 0:
        raise FrameError("entropy-coded stream ends too early, or escapes beyond any code")
    return out, int(used)

"""The trellis loops through the compiled kernel (`kernel.c`), by ctypes; see
`codec.entropy.trellis`."""

import ctypes

import numpy as np
import numpy.typing as npt

from codec.entropy.rans import Models
from codec.entropy.rans_native import pointer, the_library
from codec.entropy.rans_numpy import U8, U16, U32
from codec.errors import FrameError

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
I8 = npt.NDArray[np.int8]


def loudness(targets: I32, weights: I32) -> I64:
    """Same contract and results as `codec.entropy.trellis_numpy.loudness`."""
    out = np.empty(len(targets), dtype=np.int64)
    the_library().row_loudness(
        pointer(targets),
        ctypes.c_int64(targets.shape[0]),
        ctypes.c_int64(targets.shape[1]),
        pointer(weights),
        pointer(out),
    )
    return out


def quantize(costs: U16, targets: I32, base: U8, offsets: I8) -> tuple[I32, U8, I32]:
    """Same contract and results as `codec.entropy.trellis_numpy.quantize`."""
    num_rows, width = targets.shape
    codes = np.empty(targets.shape, dtype=np.int32)
    which = np.empty(targets.shape, dtype=np.uint8)
    escapes = np.empty(num_rows, dtype=np.int32)
    candidates = np.empty(4 * width, dtype=np.int32)
    taken = np.empty(width, dtype=np.uint8)
    result = the_library().trellis_quantize(
        pointer(targets),
        ctypes.c_int64(num_rows),
        ctypes.c_int64(width),
        pointer(base),
        pointer(offsets),
        pointer(costs),
        pointer(codes),
        pointer(which),
        pointer(escapes),
        pointer(candidates),
        pointer(taken),
    )
    if result < 0:
        raise ValueError(f"rows of {width} values are too wide for the trellis")
    return codes, which, escapes


def encode(cdf: U16, which: U8, codes: I32, states: U32) -> U16:
    """Same contract and words as `codec.entropy.trellis_numpy.encode`."""
    num_rows, width = codes.shape
    # A value emits at most one word for its symbol and two for an escape.
    capacity = 3 * codes.size
    words = np.empty(capacity, dtype=np.uint16)
    num_words = the_library().trellis_encode(
        pointer(cdf),
        pointer(np.ascontiguousarray(which)),
        pointer(np.ascontiguousarray(codes)),
        ctypes.c_int64(num_rows),
        ctypes.c_int64(width),
        ctypes.c_int32(len(states)),
        pointer(states),
        pointer(words),
        ctypes.c_int64(capacity),
    )
    if num_words < 0:
        raise IndexError("model outside the tables")
    return words[capacity - num_words :]


def decode(
    models: Models, centres: F32, base: U8, offsets: I8, states: U32, body: U8
) -> tuple[F32, int]:
    """Same contract and values as `codec.entropy.trellis_numpy.decode`."""
    out = np.empty((len(offsets), len(base)), dtype=np.float32)
    used = the_library().trellis_decode(
        pointer(models.cdf),
        pointer(models.lut),
        pointer(base),
        pointer(offsets),
        pointer(centres),
        pointer(out),
        ctypes.c_int64(out.shape[0]),
        ctypes.c_int64(out.shape[1]),
        ctypes.c_int32(len(states)),
        pointer(states),
        pointer(body),
        ctypes.c_int64(len(body) // 2),
    )
    if used < 0:
        raise FrameError("entropy-coded stream ends too early, or escapes beyond any code")
    return out, int(used)

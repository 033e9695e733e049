"""The rANS loops through the optional compiled kernel (`kernel.c`), by ctypes.

The kernel is an optional extension: installing from source without a compiler leaves it out and
`codec.entropy.rans` uses `codec.entropy.rans_numpy`, with the same bytes. ctypes releases the GIL
in the call.
"""

import ctypes
import importlib.util
import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from codec.entropy.rans_numpy import U8, U16, U32

_log = logging.getLogger(__name__)
_library: ctypes.CDLL | None = None


def load() -> bool:
    """Find the kernel; True if it is there. Cheap after the first success."""
    global _library
    if _library is not None:
        return True
    spec = importlib.util.find_spec("codec.kernel._kernel")
    if spec is None or spec.origin is None:
        return False
    try:
        library = ctypes.CDLL(spec.origin)
    except OSError as error:
        _log.warning("compiled codec kernel not usable, using numpy: %s", error)
        return False
    names = ("rans_encode", "rans_decode", "trellis_encode", "trellis_decode")
    if not all(hasattr(library, name) for name in (*names, "trellis_quantize", "row_loudness")):
        _log.warning("compiled codec kernel is an older one, using numpy: %s", spec.origin)
        return False
    for name in names:
        library[name].restype = ctypes.c_int64
    _library = library
    return True


def the_library() -> ctypes.CDLL:
    """The loaded kernel. Raises RuntimeError before `load` has found it."""
    if _library is None:
        raise RuntimeError("the compiled codec kernel is not loaded")
    return _library


def pointer(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    """Where the array's first byte is; the caller keeps the array alive."""
    return ctypes.c_void_p(array.ctypes.data)


def encode(cdf: U16, models: U8, symbols: U8, num_lanes: int) -> tuple[U32, U16]:
    """Same contract and bytes as `codec.entropy.rans_numpy.encode`."""
    count = len(symbols)
    states = np.empty(num_lanes, dtype=np.uint32)
    # One symbol emits at most one word.
    words = np.empty(count, dtype=np.uint16)
    num_words = the_library().rans_encode(
        pointer(cdf),
        ctypes.c_int32(cdf.shape[0]),
        ctypes.c_int32(cdf.shape[1] - 1),
        pointer(models),
        pointer(symbols),
        ctypes.c_int64(count),
        ctypes.c_int32(num_lanes),
        pointer(states),
        pointer(words),
        ctypes.c_int64(count),
    )
    if num_words < 0:
        raise IndexError("symbol or model outside the tables")
    return states, words[count - num_words :]


def decode(cdf: U16, lut: U8, models: U8, states: U32, words: U8) -> tuple[U8, int, U32] | None:
    """Same contract as `codec.entropy.rans_numpy.decode`, the words as little-endian bytes [2
    n]."""
    symbols = np.empty(len(models), dtype=np.uint8)
    num_words = the_library().rans_decode(
        pointer(cdf),
        pointer(lut),
        ctypes.c_int32(cdf.shape[0]),
        ctypes.c_int32(cdf.shape[1] - 1),
        pointer(models),
        pointer(symbols),
        ctypes.c_int64(len(models)),
        ctypes.c_int32(len(states)),
        pointer(states),
        pointer(words),
        ctypes.c_int64(len(words) // 2),
    )
    return None if num_words < 0 else (symbols, int(num_words), states)

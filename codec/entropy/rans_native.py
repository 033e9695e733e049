"""The rANS loops in the compiled kernel (`codec.kernel`), by ctypes.

Where the kernel was not compiled, `codec.entropy.rans` uses `codec.entropy.rans_numpy`, with the
same bytes.
"""

from __future__ import annotations

import numpy as np

from codec.arrays import U8, U16, U32
from codec.kernel.library import the_kernel


def encode(cdf: U16, model_ids: U8, symbols: U8, num_lanes: int) -> tuple[U32, U16]:
    """Same contract and bytes as `codec.entropy.rans_numpy.encode`."""
    count = len(symbols)
    states = np.empty(num_lanes, dtype=np.uint32)
    # One symbol emits at most one word.
    words = np.empty(count, dtype=np.uint16)
    num_words = the_kernel().rans_encode(
        cdf.ctypes.data,
        cdf.shape[0],
        cdf.shape[1] - 1,
        model_ids.ctypes.data,
        symbols.ctypes.data,
        count,
        num_lanes,
        states.ctypes.data,
        words.ctypes.data,
        count,
    )
    if num_words < 0:
        raise IndexError("symbol or model outside the tables")
    return states, words[count - num_words :]


def decode(cdf: U16, lut: U8, model_ids: U8, states: U32, words: U8) -> tuple[U8, int, U32] | None:
    """Same contract as `codec.entropy.rans_numpy.decode`, words as bytes [2 n]."""
    symbols = np.empty(len(model_ids), dtype=np.uint8)
    num_words = the_kernel().rans_decode(
        cdf.ctypes.data,
        lut.ctypes.data,
        cdf.shape[0],
        cdf.shape[1] - 1,
        model_ids.ctypes.data,
        symbols.ctypes.data,
        len(model_ids),
        len(states),
        states.ctypes.data,
        words.ctypes.data,
        len(words) // 2,
    )
    return None if num_words < 0 else (symbols, int(num_words), states)

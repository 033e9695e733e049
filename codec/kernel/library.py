"""The codec's compiled kernel (`kernel.c`): what it exports, and whether it is there."""

from __future__ import annotations

import ctypes
from typing import Final

from codec.kernel.loader import CFunction, KernelSpec, load_kernel

_I32: Final = ctypes.c_int32
_I64: Final = ctypes.c_int64
_AT: Final = ctypes.c_void_p  # where an array's first byte is; the caller keeps the array alive

CODEC_KERNEL: Final = KernelSpec(
    module="codec.kernel._kernel",
    abi_function="codec_abi",
    abi=(1,),
    without="the codec runs in numpy, with the same bytes",
    functions=(
        CFunction(
            name="rans_encode",
            result=_I64,
            # cdf, models, alphabet, model ids, symbols, count, lanes, states, words, capacity
            arguments=(_AT, _I32, _I32, _AT, _AT, _I64, _I32, _AT, _AT, _I64),
        ),
        CFunction(
            name="rans_decode",
            result=_I64,
            # cdf, lut, models, alphabet, model ids, symbols, count, lanes, states, words, count
            arguments=(_AT, _AT, _I32, _I32, _AT, _AT, _I64, _I32, _AT, _AT, _I64),
        ),
        CFunction(
            name="row_loudness",
            result=None,
            # targets, rows, width, weights, loudness
            arguments=(_AT, _I64, _I64, _AT, _AT),
        ),
        CFunction(
            name="trellis_quantize",
            result=_I32,
            # targets, rows, width, base, offsets, costs, codes, model ids, escapes, two scratches
            arguments=(_AT, _I64, _I64, _AT, _AT, _AT, _AT, _AT, _AT, _AT, _AT),
        ),
        CFunction(
            name="trellis_encode",
            result=_I64,
            # cdf, model ids, codes, rows, width, lanes, states, words, capacity
            arguments=(_AT, _AT, _AT, _I64, _I64, _I32, _AT, _AT, _I64),
        ),
        CFunction(
            name="trellis_decode",
            result=_I64,
            # cdf, lut, base, offsets, centres, values, rows, width, lanes, states, words, count
            arguments=(_AT, _AT, _AT, _AT, _AT, _AT, _I64, _I64, _I32, _AT, _AT, _I64),
        ),
        CFunction(
            name="rotate_back",
            result=_I32,
            # components, rows, width, inverse, blocks, order, mean, scratch, rows
            arguments=(_AT, _I64, _I64, _AT, _I64, _AT, _AT, _AT, _AT),
        ),
        CFunction(
            name="rows_of_frames",
            result=_I32,
            # cdf, lut, base, centres, steps; token codes, how many, scale; inverse, blocks, order,
            # mean, width; frames, payloads, sizes, rows, lanes, places of tokens; components,
            # scratch, rows, strange
            arguments=(
                *(_AT, _AT, _AT, _AT, _AT),
                *(_AT, _I64, _AT),
                *(_AT, _I64, _AT, _AT, _I64),
                *(_I64, _AT, _AT, _AT, _AT, _AT),
                *(_AT, _AT, _AT, _AT),
            ),
        ),
    ),
)


def is_compiled() -> bool:
    """Whether the compiled kernel is there. Cheap: the first answer is kept."""
    return load_kernel(CODEC_KERNEL) is not None


def the_kernel() -> ctypes.CDLL:
    """The compiled kernel. Raises RuntimeError where there is none."""
    library = load_kernel(CODEC_KERNEL)
    if library is None:
        raise RuntimeError("the compiled codec kernel is not there")
    return library

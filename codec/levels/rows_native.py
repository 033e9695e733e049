"""Rows of calibrated frames in the compiled kernel (`codec/kernel/rows.h`), by ctypes.

A call lets go of Python's lock, and one call takes many frames.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from codec.arrays import F32, I8, I32, I64, U8
from codec.entropy.rans import Models
from codec.entropy.trellis import num_lanes
from codec.errors import TablesError
from codec.kernel.library import the_kernel

_TOGETHER: Final = 4  # rows that share one reading of the rotation


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameTables:
    """What decoding a plain payload needs, as `CalibratedCodec` and `SplitModel` have it.

    steps: half step of each step index, [16] float32.
    """

    models: Models
    centres: F32
    base: U8
    steps: F32
    token_codes: I8
    token_scale: F32
    inverse: F32
    order: I32
    mean: F32


def _address(array: npt.NDArray[Any], dtype: type[np.generic]) -> int:
    """Where the array's first byte is. TypeError for what the kernel would read wrongly."""
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise TypeError(f"the kernel takes {dtype.__name__} in one piece, not {array.dtype}")
    return array.ctypes.data


def rotated_back(components: F32, inverse: F32, order: I32, mean: F32) -> F32:
    """Rows [T, D] from components [T, D]. Each row's bits are the same whatever T is."""
    components = np.ascontiguousarray(components)
    out = np.empty_like(components)
    scratch = np.empty((_TOGETHER, len(mean)), dtype=np.float32)
    result = the_kernel().rotate_back(
        _address(components, np.float32),
        *components.shape,
        _address(inverse, np.float32),
        len(inverse),
        _address(order, np.int32),
        _address(mean, np.float32),
        scratch.ctypes.data,
        out.ctypes.data,
    )
    if result < 0:
        raise TablesError("channel order in the calibrated tables is not a permutation")
    return out


def rows_of_frames(
    tables: FrameTables, payloads: Sequence[bytes], num_rows: Sequence[int], listed: I64
) -> list[F32 | None]:
    """Rows [T, D] of each payload; None for one that has to be decoded elsewhere.

    None says nothing of what is wrong: a payload with outliers is one too. num_rows: T of each, at
    most ROWWISE_UP_TO. listed: of all rows in a line, their places in `token_codes`, or -1.
    """
    width, count, total = len(tables.mean), len(payloads), len(listed)
    sizes = np.fromiter(map(len, payloads), np.int64, count)
    rows = np.asarray(num_rows, dtype=np.int32)
    lanes = np.array([num_lanes(each, width) for each in num_rows], dtype=np.int32)
    components, out = np.empty((2, total, width), dtype=np.float32)
    scratch = np.empty((_TOGETHER, width), dtype=np.float32)
    strange = np.empty(count, dtype=np.uint8)
    result = the_kernel().rows_of_frames(
        _address(tables.models.cdf, np.uint16),
        _address(tables.models.lut, np.uint8),
        _address(tables.base, np.uint8),
        _address(tables.centres, np.float32),
        _address(tables.steps, np.float32),
        _address(tables.token_codes, np.int8),
        len(tables.token_codes),
        _address(tables.token_scale, np.float32),
        _address(tables.inverse, np.float32),
        len(tables.inverse),
        _address(tables.order, np.int32),
        _address(tables.mean, np.float32),
        width,
        count,
        (ctypes.c_char_p * count)(*payloads),
        sizes.ctypes.data,
        rows.ctypes.data,
        lanes.ctypes.data,
        _address(listed, np.int64),
        components.ctypes.data,
        scratch.ctypes.data,
        out.ctypes.data,
        strange.ctypes.data,
    )
    if result < 0:
        raise TablesError("the calibrated tables do not fit together")
    ends = np.cumsum(rows).tolist()
    # Copies: a session's rows must not keep those of all the others alive.
    return [
        None if is_strange else out[end - each : end].copy()
        for end, each, is_strange in zip(ends, num_rows, strange.tolist(), strict=True)
    ]

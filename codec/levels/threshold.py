"""Threshold splitting (TS): the few large values of a row are sent apart, as outliers.

Values whose magnitude passes a threshold go into a sparse part in compressed-sparse-row form: a
count per row, column numbers of ceil(log2 D) bits, and the values in fp16, or fp32 beyond 65,504
where fp16 would overflow. Two rules choose them: a threshold tau per channel (calibrated), or the k
largest of each row.

Source: Sung et al. 2025, arXiv:2511.04002 (the idea and the CSR part). The paper's tau was not
available; both rules and the byte layout are ours.

Layout: mode byte (0 nothing, 1 the same count in every row, 2 a byte per row, 3 two bytes per row);
the count or counts; columns, bit-packed; one bit a value, set for fp32; fp16 values; fp32 values.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from codec.arrays import F32, I64, Mask, widened
from codec.entropy.bits import pack, packed_bytes, unpack
from codec.errors import FrameError
from codec.rows import Rows

FP16_MAX: Final = 65504.0


class Sparse(NamedTuple):
    """The sparse part of T rows: row and column of each value, [n] each, and bytes read."""

    rows: I64
    columns: I64
    values: F32
    num_bytes: int


def mask_top_k(rows: Rows, k: int) -> Mask:
    """[T, D], true at the k largest magnitudes of each row of [T, D]; NaN counts as the largest.

    Among equal magnitudes the first columns win. So frames are the same on every processor, where
    a partition's order among equals is not.
    """
    if k == 0 or len(rows) == 0:
        return np.zeros(rows.shape, dtype=np.bool_)
    size = np.abs(rows)
    size[np.isnan(size)] = np.inf
    least = np.partition(size, rows.shape[1] - k, axis=1)[:, -k, None]  # [T, 1], the k-th largest
    mask: Mask = size > least
    equal = size == least
    left = k - mask.sum(axis=1, keepdims=True)
    if (equal.sum(axis=1, keepdims=True) > left).any():
        equal &= np.cumsum(equal, axis=1) <= left
    mask |= equal
    return mask


def mask_above(rows: Rows, tau: F32 | float) -> Mask:
    """[T, D], true where |value| > tau; tau is one number or one per channel [D]."""
    return np.abs(rows) > tau


def _column_bits(hidden_size: int) -> int:
    return max(1, (hidden_size - 1).bit_length())


def encode_sparse(rows: Rows, mask: Mask) -> bytes:
    """The values of rows [T, D] under mask, in the layout above."""
    counts = mask.sum(axis=1)
    if not counts.any():
        return b"\0"
    row, column = np.nonzero(mask)
    values = rows[row, column]
    if (counts == counts[0]).all():
        head = b"\1" + int(counts[0]).to_bytes(2, "little")
    elif counts.max() < 256:
        head = b"\2" + counts.astype(np.uint8).tobytes()
    else:
        head = b"\3" + counts.astype("<u2").tobytes()
    wide = np.abs(values) > FP16_MAX
    return b"".join(
        (
            head,
            pack(column, np.full(len(column), _column_bits(rows.shape[1]))),
            np.packbits(wide, bitorder="little").tobytes(),
            values[~wide].astype("<f2").tobytes(),
            values[wide].astype("<f4").tobytes(),
        )
    )


def decode_sparse(data: memoryview, num_rows: int, hidden_size: int) -> Sparse:
    """The sparse part at the front of `data`. Raises FrameError; allocates at most T x D values."""
    if len(data) == 0:
        raise FrameError("sparse part is missing")
    mode, at = data[0], 1
    if mode == 0:
        counts = np.zeros(num_rows, dtype=np.int64)
    elif mode in (1, 2, 3):
        size = {1: 2, 2: num_rows, 3: 2 * num_rows}[mode]
        if len(data) < at + size:
            raise FrameError("sparse part ends inside its counts")
        dtype = np.uint8 if mode == 2 else np.dtype("<u2")
        counts = np.frombuffer(data, dtype, count=1 if mode == 1 else num_rows, offset=at)
        counts = np.broadcast_to(counts, (num_rows,)).astype(np.int64)
        at += size
    else:
        raise FrameError(f"sparse part of unknown mode {mode}")
    if (counts > hidden_size).any():
        raise FrameError("sparse part has more values than a row has channels")
    total = int(counts.sum())
    widths = np.full(total, _column_bits(hidden_size))
    columns = unpack(data[at:], widths)
    at += packed_bytes(widths)
    if (columns >= hidden_size).any():
        raise FrameError("sparse part names a channel beyond the width")
    flag_bytes = (total + 7) // 8
    if len(data) < at + flag_bytes:
        raise FrameError("sparse part ends inside its flags")
    flags = np.frombuffer(data, np.uint8, count=flag_bytes, offset=at)
    wide = np.unpackbits(flags, bitorder="little")[:total].astype(np.bool_)
    at += flag_bytes
    num_wide = int(wide.sum())
    num_narrow = total - num_wide
    if len(data) < at + 2 * num_narrow + 4 * num_wide:
        raise FrameError("sparse part ends inside its values")
    values = np.empty(total, dtype=np.float32)
    values[~wide] = widened(np.frombuffer(data, "<f2", count=num_narrow, offset=at))
    at += 2 * num_narrow
    values[wide] = np.frombuffer(data, "<f4", count=num_wide, offset=at)
    at += 4 * num_wide
    row = np.repeat(np.arange(num_rows), counts)
    return Sparse(rows=row, columns=columns, values=values, num_bytes=at)

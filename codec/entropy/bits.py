"""Packing unsigned integers of known bit widths, least significant bit first."""

from __future__ import annotations

from typing import Final

import numpy as np

from codec.arrays import I64
from codec.errors import FrameError

_BYTE: Final = 8


def packed_bytes(widths: I64) -> int:
    """Bytes that values of these widths take together."""
    return (int(widths.sum()) + 7) // 8


def pack(values: I64, widths: I64) -> bytes:
    """values [n] >= 0, value i in widths[i] bits (0 to 32); the last byte is zero-filled."""
    if len(values) == 0:
        return b""
    most = int(widths.max())
    place = np.arange(most)
    if most <= _BYTE:  # the same bits, several times as fast
        low = values.astype(np.uint8)[:, None]
        bits = np.unpackbits(low, axis=1, count=most, bitorder="little")
    else:
        bits = (values[:, None] >> place & 1).astype(np.uint8)  # [n, W]
    return np.packbits(bits[place < widths[:, None]], bitorder="little").tobytes()


def unpack(data: memoryview, widths: I64) -> I64:
    """The values [n] at the front of `data`. Raises FrameError if it is too short."""
    if len(widths) == 0:
        return np.zeros(0, dtype=np.int64)
    size = packed_bytes(widths)
    if len(data) < size:
        raise FrameError("packed integers end too early")
    most = int(widths.max())
    place = np.arange(most)
    flat = np.unpackbits(np.frombuffer(data, np.uint8, count=size), bitorder="little")
    flat = flat[: int(widths.sum())]
    if 0 < most <= _BYTE:
        few = np.zeros((len(widths), len(place)), dtype=np.uint8)
        np.place(few, place < widths[:, None], flat)
        return np.packbits(few, axis=1, bitorder="little")[:, 0].astype(np.int64)
    bits = np.zeros((len(widths), len(place)), dtype=np.int64)
    bits[place < widths[:, None]] = flat
    return np.asarray((bits << place).sum(axis=1))

"""Packed integers come back, and their bytes are the definition's: least significant bit first."""

from __future__ import annotations

import numpy as np
import pytest

from codec.arrays import I64
from codec.entropy.bits import pack, packed_bytes, unpack
from codec.errors import FrameError


def by_definition(values: I64, widths: I64) -> bytes:
    number = shift = 0
    for value, width in zip(values.tolist(), widths.tolist(), strict=True):
        number |= value << shift
        shift += width
    return number.to_bytes((shift + 7) // 8, "little")


@pytest.mark.parametrize("most", [0, 1, 5, 8, 9, 20, 32])
def test_values_of_any_width_come_back(most: int) -> None:
    rng = np.random.default_rng(most)
    widths = rng.integers(0, most + 1, 300)
    values = rng.integers(0, 1 << 32, 300) & (1 << widths) - 1
    data = pack(values, widths)
    assert data == by_definition(values, widths)
    assert len(data) == packed_bytes(widths)
    assert (unpack(memoryview(data + b"more"), widths) == values).all()
    if data:
        with pytest.raises(FrameError, match="end too early"):
            unpack(memoryview(data[:-1]), widths)


def test_no_values_take_no_bytes() -> None:
    none = np.zeros(0, dtype=np.int64)
    assert pack(none, none) == b""
    assert len(unpack(memoryview(b""), none)) == 0

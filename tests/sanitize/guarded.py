"""Arrays in memory of exactly their size: the sanitizer sees a read or a write one byte beyond."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

_LIBC = ctypes.CDLL(None)
_LIBC.malloc.restype = ctypes.c_void_p
_LIBC.malloc.argtypes = (ctypes.c_size_t,)
_LIBC.free.restype = None
_LIBC.free.argtypes = (ctypes.c_void_p,)


class Guarded:
    """Gives C copies of arrays, each an allocation of its own, until the context ends."""

    def __init__(self) -> None:
        self._addresses: list[int] = []

    def __enter__(self) -> Guarded:
        return self

    def __exit__(self, *error: object) -> None:
        for address in self._addresses:
            _LIBC.free(address)
        self._addresses.clear()

    def copy(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The same values in memory of their own; valid until the context ends."""
        flat = np.ascontiguousarray(array)
        address = _LIBC.malloc(flat.nbytes)
        self._addresses.append(address)
        raw = (ctypes.c_uint8 * flat.nbytes).from_address(address)
        copied = np.ctypeslib.as_array(raw).view(flat.dtype).reshape(flat.shape)
        copied[...] = flat
        return copied

    def filled(self, shape: int | tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
        """Memory for results, full of 0xA5."""
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        junk = np.full(count, 0xA5, dtype=np.uint8)
        return self.copy(junk.view(dtype).reshape(shape))


def address(array: npt.NDArray[Any] | None) -> int | None:
    """What C gets: NULL for None and for an array without elements."""
    return None if array is None or array.size == 0 else array.ctypes.data

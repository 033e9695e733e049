"""Hidden states of many windows, in memory or in a file: what goes from one layer to the next.

A file is read and written in pieces and never mapped, so that no page of it counts as memory of
this process.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class HiddenRows:
    """Rows [N, W, D] of N windows. In memory where `folder` is None, else in a file there.

    dtype: of the stored values; `read` gives float32. The file goes when the object goes.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        folder: Path | None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.folder = folder
        self._window_bytes = shape[1] * shape[2] * dtype.itemsize
        self._memory = torch.empty(shape, dtype=dtype) if folder is None else None
        self._file = None if folder is None else _new_file(folder)
        if self._file is not None:
            weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, begin: int, end: int) -> Tensor:
        """Windows `begin` to `end`, float32 [end - begin, W, D], a copy."""
        if self._file is None:
            return _need(self._memory)[begin:end].to(torch.float32, copy=True)
        stored = torch.empty(end - begin, *self.shape[1:], dtype=self.dtype)
        view = _bytes_of(stored)
        self._file.seek(begin * self._window_bytes)
        while view:
            count = self._file.readinto(view)
            if not count:
                raise OSError(f"rows {begin} to {end} were never written")
            view = view[count:]
        return stored.to(torch.float32)

    def write(self, begin: int, rows: Tensor) -> None:
        """Store rows [n, W, D] as the windows from `begin` on."""
        values = rows.detach().to("cpu", self.dtype).contiguous()
        if self._file is None:
            _need(self._memory)[begin : begin + len(values)] = values
            return
        self._file.seek(begin * self._window_bytes)
        view = _bytes_of(values)
        while view:
            view = view[self._file.write(view) :]

    def pieces(self, windows: int) -> Iterator[tuple[int, int]]:
        """(begin, end) of consecutive pieces of at most `windows` windows."""
        for begin in range(0, len(self), windows):
            yield begin, min(begin + windows, len(self))

    def close(self) -> None:
        """Free the memory or the file."""
        self._memory = None
        if self._file is not None:
            self._file.close()


def _new_file(folder: Path) -> Any:
    """A file without a name, which the system frees when it is closed."""
    return tempfile.TemporaryFile(dir=folder, buffering=0)


def copied(source: HiddenRows, begin: int, end: int) -> HiddenRows:
    """Windows `begin` to `end` of `source` by themselves, in the same kind of place."""
    shape = (end - begin, *source.shape[1:])
    target = HiddenRows(shape, source.folder, dtype=source.dtype)
    copy_rows(source, target, 0, begin, end)
    return target


def copy_rows(
    source: HiddenRows, target: HiddenRows, at: int, begin: int = 0, end: int | None = None
) -> None:
    """Copy windows `begin` to `end` of `source` to `target`, from window `at` on."""
    stop = len(source) if end is None else end
    for index in range(begin, stop):
        target.write(at + index - begin, source.read(index, index + 1))


def _bytes_of(values: Tensor) -> memoryview:
    """The values' own memory, byte by byte."""
    flat: Any = values.reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def _need(memory: Tensor | None) -> Tensor:
    if memory is None:
        raise ValueError("these rows were closed")
    return memory

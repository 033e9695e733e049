"""Rows of 16 bits in files: what the head is trained on, read a batch at a time.

The files are read, never mapped, so no page of them counts as memory of this process. They are open
only while a batch is read, so their number has no limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from codec.arrays import I64

F16: TypeAlias = npt.NDArray[np.float16]
# Values of this type, row after row, without a header.
VALUE: Final = np.dtype("<f2")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRange:
    """The rows `begin` to `begin + count` of a file."""

    path: Path
    begin: int
    count: int


class StoredRows:
    """Rows [N, D] of consecutive ranges. Indexed like an array of rows; an index reads a copy.

    ranges: at least one. width: D.
    """

    def __init__(self, ranges: Sequence[RowRange], width: int) -> None:
        self._ranges = _merged(ranges)
        self._width = width
        ends = np.cumsum([part.count for part in self._ranges], dtype=np.int64)
        self._starts: I64 = np.concatenate([np.zeros(1, dtype=np.int64), ends])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return len(self), self._width

    def __getitem__(self, which: slice | I64) -> F16:
        """Rows float16 [n, D]: of a slice, or of indices int64 [n] from 0 to N - 1.

        Raises IndexError for an index beyond the rows, OSError for a file that is not as long.
        """
        if isinstance(which, slice):
            which = np.arange(*which.indices(len(self)), dtype=np.int64)
        if len(which) and not (which.min() >= 0 and which.max() < len(self)):
            raise IndexError(f"a row beyond the {len(self)} that there are")
        found = np.empty((len(which), self._width), dtype=VALUE)
        of_range = np.searchsorted(self._starts, which, side="right") - 1
        bounds = np.flatnonzero(np.diff(of_range)) + 1
        for at in np.split(np.arange(len(which)), bounds) if len(which) else ():
            part = self._ranges[of_range[at[0]]]
            places = which[at] - self._starts[of_range[at[0]]] + part.begin
            with part.path.open("rb", buffering=0) as file:
                self._read(file, places, found[at[0] : at[-1] + 1])
        return found

    def between(self, begin: int, end: int) -> StoredRows:
        """The rows `begin` to `end` by themselves; nothing is read."""
        parts = []
        for part, start in zip(self._ranges, self._starts[:-1].tolist(), strict=True):
            first, last = max(begin - start, 0), min(end - start, part.count)
            if first < last:
                parts.append(RowRange(path=part.path, begin=part.begin + first, count=last - first))
        none = RowRange(path=self._ranges[0].path, begin=0, count=0)
        return StoredRows(parts or [none], self._width)

    def _read(self, file: FileIO, places: I64, found: F16) -> None:
        """Fill `found` with the file's rows at `places`, one call for each run of neighbours."""
        row_bytes = self._width * VALUE.itemsize
        view = memoryview(found.reshape(-1).view(np.uint8).data)
        bounds = [0, *(np.flatnonzero(np.diff(places) != 1) + 1).tolist(), len(places)]
        for first, last in pairwise(bounds):
            file.seek(int(places[first]) * row_bytes)
            left = view[first * row_bytes : last * row_bytes]
            while left:
                count = file.readinto(left)
                if not count:
                    raise OSError(f"{file.name} ends before row {places[last - 1]}")
                left = left[count:]


# Rows [N, D], in memory or in files. Both are indexed by a slice, or by indices int64 [n].
HalfRows: TypeAlias = StoredRows | F16


def joined(parts: Sequence[StoredRows]) -> StoredRows:
    """All rows of the parts, one after the other; nothing is read. Raises ValueError for none."""
    if not parts:
        raise ValueError("no rows to join")
    return StoredRows([one for part in parts for one in part._ranges], parts[0].shape[1])


def _merged(ranges: Sequence[RowRange]) -> tuple[RowRange, ...]:
    """The ranges, where each that continues the one before is a part of it."""
    found: list[RowRange] = []
    for part in ranges:
        last = found[-1] if found else None
        if last and last.path == part.path and last.begin + last.count == part.begin:
            found[-1] = replace(last, count=last.count + part.count)
        else:
            found.append(part)
    return tuple(found)

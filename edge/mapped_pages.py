"""Keep a memory-mapped file from filling the resident set: give its pages back as one goes.

ONNX Runtime maps the front's weights. The embedding is read a row at a time, and every row maps
the pages around it, so over a long text the whole table becomes resident although each page was
needed once. `release` unmaps what is clean; a page that is needed again comes from the page cache,
a fault of a microsecond. Linux only; elsewhere there is nothing to release.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

MADV_DONTNEED: Final = 4  # linux/include/uapi/asm-generic/mman-common.h


class Region(NamedTuple):
    start: int
    num_bytes: int


class MappedFile:
    """The mappings of `path` in this process, as they are when this is made."""

    def __init__(self, path: Path) -> None:
        self._regions = clean_regions(path) if sys.platform.startswith("linux") else ()
        self._libc = _libc()

    @property
    def num_bytes(self) -> int:
        """Bytes that `release` may give back."""
        return sum(region.num_bytes for region in self._regions)

    def release(self) -> None:
        """Unmap what is resident; it is read again from the file when it is touched."""
        if self._libc is None:
            return
        for region in self._regions:
            self._libc.madvise(
                ctypes.c_void_p(region.start), ctypes.c_size_t(region.num_bytes), MADV_DONTNEED
            )


def trim_heap() -> None:
    """Give memory back that was freed and that the allocator keeps (glibc alone does)."""
    gc.collect()
    libc = _libc()
    if libc is not None and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def clean_regions(path: Path) -> tuple[Region, ...]:
    """Mappings of `path` without a page of their own: dropping them loses nothing.

    A private mapping that was written to has anonymous pages, which only memory holds.
    """
    regions: list[Region] = []
    name = os.path.realpath(path)
    current: Region | None = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            current = Region(start, end - start) if rest.endswith(name) else None
        elif first == "Anonymous:" and current is not None and rest.split()[0] == "0":
            regions.append(current)
    return tuple(regions)


def _libc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    return ctypes.CDLL(None, use_errno=True)

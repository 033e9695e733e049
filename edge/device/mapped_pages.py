"""Keep mapped files from filling the resident set: release their pages now and then.

ONNX Runtime maps the front's weights, and the codec maps its predictions. Both are read a row at a
time, and every row maps the pages around it. Over a long text a whole table becomes resident,
although each page was needed once. The same holds for libraries: most of their pages were needed
only to start. Releasing unmaps clean pages. A page that is needed again comes from the page cache,
with a fault of a microsecond. Linux only; elsewhere there is nothing to release.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

MADV_DONTNEED: Final = 4  # linux/include/uapi/asm-generic/mman-common.h


class Region(NamedTuple):
    """A range of addresses."""

    start: int
    num_bytes: int


class Mapping(NamedTuple):
    """One line of /proc/self/maps: where, its flags such as "r-xp", and the file's path."""

    region: Region
    flags: str
    path: str


class MappedFiles:
    """The mappings of `paths` in this process, as they are when this is made."""

    def __init__(self, *paths: Path) -> None:
        names = {os.path.realpath(path) for path in paths}
        self._regions = clean_regions(lambda mapping: mapping.path in names)
        self._libc = _libc()

    @property
    def num_bytes(self) -> int:
        """Bytes that `release` may give back."""
        return sum(region.num_bytes for region in self._regions)

    def release(self) -> None:
        """Unmap what is resident; it is read again from the file when it is touched."""
        _release(self._libc, self._regions)


def release_read_only_pages() -> int:
    """Unmap every file that is mapped for reading alone, code above all; returns its bytes.

    Pages that the process still uses come back at once; those that only starting needed do not.
    The files hold everything that these pages hold, because no one may write to them.
    """
    regions = clean_regions(lambda mapping: bool(mapping.path) and "w" not in mapping.flags)
    _release(_libc(), regions)
    return sum(region.num_bytes for region in regions)


def clean_regions(wanted: Callable[[Mapping], bool]) -> tuple[Region, ...]:
    """Wanted mappings without a page of their own: dropping them loses nothing.

    A private mapping that was written to has anonymous pages, which only memory holds.
    """
    if not sys.platform.startswith("linux"):
        return ()
    regions: list[Region] = []
    current: Region | None = None
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split(maxsplit=5)
        if "-" in fields[0] and not fields[0].endswith(":"):
            start, end = (int(part, 16) for part in fields[0].split("-"))
            path = fields[5] if len(fields) == 6 and fields[5].startswith("/") else ""
            mapping = Mapping(Region(start, end - start), fields[1], path)
            current = mapping.region if wanted(mapping) else None
        elif fields[0] == "Anonymous:" and current is not None and fields[1] == "0":
            regions.append(current)
    return tuple(regions)


def _release(libc: Any, regions: tuple[Region, ...]) -> None:
    for region in regions if libc is not None else ():
        libc.madvise(
            ctypes.c_void_p(region.start), ctypes.c_size_t(region.num_bytes), MADV_DONTNEED
        )


def _libc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    return ctypes.CDLL(None, use_errno=True)

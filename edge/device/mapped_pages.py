"""Keep mapped files from filling the resident set: release their pages now and then.

ONNX Runtime maps the front's weights, and the codec maps its predictions. Both are read a row at a
time, and every row maps the pages around it. Over a long text a whole table becomes resident,
although each page was needed once. The same holds for libraries: most of their pages were needed
only to start. Releasing unmaps clean pages. A page that is needed again comes from the page cache,
with a fault of a microsecond. Linux only; elsewhere there is nothing to release.

A range of addresses may be unmapped and then hold other memory, which releasing would empty: a
segment of a front is dropped, or another front of the same bundle goes away. So only what is still
mapped from the file is released, and files are unmapped under `unmapping`.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
import threading
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

# linux/include/uapi/asm-generic/mman-common.h
MADV_WILLNEED: Final = 3
MADV_DONTNEED: Final = 4
MADV_POPULATE_READ: Final = 22  # from Linux 5.14 on
# Held while mapped files are dropped, and from reading what is mapped to the end of releasing it.
unmapping: Final = threading.RLock()


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
        self._names = {os.path.realpath(path) for path in paths}
        self._regions = _regions_of_files(self._names)
        self._libc = _libc()

    @property
    def num_bytes(self) -> int:
        """Bytes that `release` may give back."""
        return sum(region.num_bytes for region in self._regions)

    def release(self) -> None:
        """Unmap what is resident; it is read again from the file when it is touched."""
        if not self._regions:
            return
        with unmapping:
            ends = tuple(self._names)
            lines = (line for line in _lines("maps") if line.endswith(ends))  # few of many
            still = {each.region for each in map(_mapping, lines) if each is not None}
            _release(self._libc, tuple(each for each in self._regions if each in still))


class HeldMapping:
    """Mappings of one file whose owner stays as long as this is used: nothing is checked anew.

    others: where the file was mapped before the owner mapped it. Those mappings belong to somebody
    else; once they are gone, their addresses may hold anything. What `read` brings is what `learn`
    found resident. Until then it is everything.
    """

    def __init__(self, path: Path, others: Sequence[Region] = ()) -> None:
        self._path = os.path.realpath(path)
        self._all = tuple(each for each in regions_of(path) if not _overlaps(each, others))
        self._used = self._all
        self._libc = _libc()

    @property
    def num_bytes(self) -> int:
        """Bytes that `read` brings into memory."""
        return sum(region.num_bytes for region in self._used)

    def learn(self) -> None:
        """From now on `read` brings only the mappings of which something is resident now."""
        resident = set(resident_regions(self._path))
        self._used = tuple(region for region in self._all if region in resident) or self._all

    def read(self) -> None:
        """Bring the pages from storage into memory, and map them. Returns when they are there.

        OSError where storage cannot be read. Older kernels than 5.14 read ahead only, and do not
        say so.
        """
        for region in self._used:
            self._advise(region, MADV_WILLNEED)
        for region in self._used:
            failed = self._advise(region, MADV_POPULATE_READ)
            if failed not in (0, errno.EINVAL, errno.ENOSYS):
                raise OSError(failed, os.strerror(failed), self._path)

    def release(self) -> None:
        """Unmap all pages. The system may keep them in its page cache."""
        _release(self._libc, self._all)

    def _advise(self, region: Region, advice: int) -> int:
        address, size = ctypes.c_void_p(region.start), ctypes.c_size_t(region.num_bytes)
        return ctypes.get_errno() if self._libc.madvise(address, size, advice) else 0


def regions_of(path: Path) -> tuple[Region, ...]:
    """Where the file is mapped for reading alone."""
    return _regions_of_files({os.path.realpath(path)})


def _regions_of_files(names: Set[str]) -> tuple[Region, ...]:
    """Mappings of few files without a page of their own, as `clean_regions` finds them.

    The system takes milliseconds a GiB to count the pages of all mappings, and little for those of
    a few.
    """
    if not sys.platform.startswith("linux"):
        return ()
    ends = tuple(names)
    lines = (line for line in _lines("maps") if line.endswith(ends))  # few of many
    found = [each for each in map(_mapping, lines) if each is not None and each.path in names]
    try:
        return tuple(each.region for each in found if not _has_own_pages(each.region))
    except OSError:  # a system without the file
        return clean_regions(lambda mapping: mapping.path in names)


def _has_own_pages(region: Region) -> bool:
    """Whether a page of the region is not the file's. OSError where the system does not say.

    Source: the Linux kernel's admin-guide/mm/pagemap.rst: eight bytes a page, of which bit 63 says
    in memory, 62 swapped, and 61 a file's page.
    """
    count = -(-region.num_bytes // mmap.PAGESIZE)
    with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
        file.seek(region.start // mmap.PAGESIZE * 8)
        data = file.read(8 * count)
    if len(data) < 8 * count:
        raise OSError("the page map ends early")
    kind = np.frombuffer(data, dtype=np.uint64) >> np.uint64(61)
    return bool(((kind > 1) & (kind % 2 == 0)).any())


def _overlaps(region: Region, others: Sequence[Region]) -> bool:
    end = region.start + region.num_bytes
    return any(each.start < end and region.start < each.start + each.num_bytes for each in others)


def can_stream() -> bool:
    """Whether mapped pages can be read and given back here as `HeldMapping` does."""
    return sys.platform.startswith("linux")


def resident_regions(path: str) -> tuple[Region, ...]:
    """The mappings of a file that have a page in memory."""
    found: list[Region] = []
    current: Region | None = None
    for line in _lines("smaps"):
        mapping = _mapping(line)
        if mapping is not None:
            current = mapping.region if mapping.path == path else None
        elif current is not None and line.startswith("Rss:") and line.split()[1] != "0":
            found.append(current)
    return tuple(found)


def release_read_only_pages() -> int:
    """Unmap every file that is mapped for reading alone, code above all; returns its bytes.

    Pages that the process still uses come back at once; those that only starting needed do not.
    The files hold everything that these pages hold, because no one may write to them.
    """
    with unmapping:
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
    for line in _lines("smaps"):
        mapping = _mapping(line)
        if mapping is not None:
            current = mapping.region if wanted(mapping) else None
        elif current is not None and line.split()[:2] == ["Anonymous:", "0"]:
            regions.append(current)
    return tuple(regions)


def _lines(name: str) -> list[str]:
    text = Path("/proc/self", name).read_text(encoding="utf-8", errors="replace")
    return text.splitlines()


def _mapping(line: str) -> Mapping | None:
    """A line that begins a mapping; None for one of its counters."""
    fields = line.split(maxsplit=5)
    if "-" not in fields[0] or fields[0].endswith(":"):
        return None
    start, end = (int(part, 16) for part in fields[0].split("-"))
    path = fields[5] if len(fields) == 6 and fields[5].startswith("/") else ""
    return Mapping(Region(start, end - start), fields[1], path)


def _release(libc: Any, regions: tuple[Region, ...]) -> None:
    for region in regions if libc is not None else ():
        libc.madvise(
            ctypes.c_void_p(region.start), ctypes.c_size_t(region.num_bytes), MADV_DONTNEED
        )


def _libc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    return ctypes.CDLL(None, use_errno=True)

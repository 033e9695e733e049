"""Pages of a mapped file go back, and come again with the same bytes."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import pytest

from edge.device import mapped_pages
from edge.device.mapped_pages import (
    HeldMapping,
    MappedFiles,
    Region,
    clean_regions,
    regions_of,
    release_read_only_pages,
)

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's /proc")
SIZE = 4 << 20


def resident_bytes(path: Path) -> int:
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            ours = line.endswith(str(path))
        elif first == "Rss:" and ours:
            total += int(line.split()[1]) << 10
    return total


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


def test_pages_go_back_and_the_bytes_stay(file: Path) -> None:
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
        before = bytes(view)
        assert resident_bytes(file) >= SIZE // 2
        mapped = MappedFiles(file)
        assert mapped.num_bytes == SIZE
        mapped.release()
        assert resident_bytes(file) < SIZE // 8
        assert bytes(view) == before


def test_a_mapping_that_was_written_to_is_left_alone(file: Path) -> None:
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as view:
        view[0] = 7
        mapped = MappedFiles(file)
        assert mapped.num_bytes == 0
        mapped.release()
        assert view[0] == 7


def test_the_page_map_and_the_list_of_pages_agree(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a mapping that may be written to, before and after it is, and without a page map."""
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as view:
        sum(view[::4096])
        clean = regions_of(file)
        assert sum(each.num_bytes for each in clean) == SIZE
        assert clean == clean_regions(lambda mapping: mapping.path == str(file))
        monkeypatch.setattr(mapped_pages, "_has_own_pages", unknown)
        assert regions_of(file) == clean
        monkeypatch.undo()
        view[SIZE // 2] = 7
        assert regions_of(file) == clean_regions(lambda mapping: mapping.path == str(file)) == ()


def unknown(_region: Region) -> bool:
    raise OSError("no page map here")


def test_only_what_nobody_may_write_goes_with_the_libraries_pages(file: Path) -> None:
    with (
        file.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as writable,
    ):
        sum(writable[::4096])
        assert release_read_only_pages() > 0
        assert resident_bytes(file) >= SIZE // 2
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
        before = bytes(view)
        assert release_read_only_pages() > SIZE
        assert resident_bytes(file) < SIZE // 8
        assert bytes(view) == before


def test_memory_that_took_a_dropped_mappings_place_is_left_alone(file: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with file.open("rb") as stream:
        address = libc.mmap(None, SIZE, mmap.PROT_READ, mmap.MAP_PRIVATE, stream.fileno(), 0)
        mapped = MappedFiles(file)
        assert mapped.num_bytes == SIZE
        libc.munmap(address, SIZE)
    taken = libc.mmap(address, SIZE, mmap.PROT_READ | mmap.PROT_WRITE, anonymous, -1, 0)
    try:
        assert taken == address
        ctypes.memset(taken, 7, SIZE)
        mapped.release()
        assert ctypes.string_at(taken, SIZE) == b"\7" * SIZE
    finally:
        libc.munmap(taken, SIZE)


def test_mappings_that_were_there_before_belong_to_somebody_else(tmp_path: Path) -> None:
    """They may go first. Their addresses may then hold anything, and releasing would empty it."""
    path = tmp_path / "layer.data"
    path.write_bytes(bytes(8 * mmap.PAGESIZE))
    with path.open("rb") as file:
        before = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        others = regions_of(path)
        assert sum(each.num_bytes for each in others) == 8 * mmap.PAGESIZE
        own = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        held = HeldMapping(path, others)
        before.close()
        assert held.num_bytes == 8 * mmap.PAGESIZE
        held.release()
        assert regions_of(path)
        assert not set(regions_of(path)) & set(others)
        own.close()

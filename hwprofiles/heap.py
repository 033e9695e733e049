"""The C library's heap of this process, where it is glibc's; elsewhere there is nothing to call.

glibc keeps what is freed, in the arena of the thread that allocated it, and a large block that was
freed makes it keep larger ones. Source: malloc_trim(3), mallopt(3).
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any, Final

_M_MMAP_THRESHOLD: Final = -3  # glibc's malloc.h
_M_ARENA_MAX: Final = -8
# Blocks from this size on are mapped one by one and go back as soon as they are freed. glibc begins
# with it too, and raises it with every large block that is freed, up to 32 MiB.
_MAPPED_BLOCK_BYTES: Final = 128 << 10
_MOST_HEAPS: Final = 2


def can_trim() -> bool:
    """Whether `trim_heap` does anything here."""
    return hasattr(_libc(), "malloc_trim")


def trim_heap() -> None:
    """Return freed memory that the allocator keeps to the system: milliseconds for each GiB."""
    libc = _libc()
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(ctypes.c_size_t(0))


def return_freed_blocks() -> None:
    """From now on a large block that is freed goes back to the system at once.

    For the whole process. It costs page faults: about a tenth of a long prefill's time, and nothing
    measurable while decoding.
    """
    _mallopt(_M_MMAP_THRESHOLD, _MAPPED_BLOCK_BYTES)


def share_heaps() -> None:
    """From now on threads share two heaps instead of having up to eight a core.

    For a process that answers each request in a thread of its own. What such threads leave behind
    in many heaps adds up over thousands of requests; in two heaps it does not.
    """
    _mallopt(_M_ARENA_MAX, _MOST_HEAPS)


def _mallopt(option: int, value: int) -> None:
    libc = _libc()
    if hasattr(libc, "mallopt"):
        libc.mallopt(option, value)


def _libc() -> Any:
    return ctypes.CDLL(None) if sys.platform.startswith("linux") else None

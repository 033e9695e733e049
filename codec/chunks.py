"""Work on many rows, cut into pieces that fit the processor's cache, on a few threads.

Rows do not depend on each other, so pieces change nothing but the time. numpy, BLAS and the kernel
release the GIL while they compute. A decoding step is one piece.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Final, TypeVar

from hwprofiles.machine_limits import usable_cpus

Result = TypeVar("Result")

CHUNK: Final = 64  # more than codec.rows.ROWWISE_UP_TO, so that a piece is never coded row by row
_MAX_THREADS: Final = 4


def by_chunks(
    work: Callable[[slice], Result], num_rows: int, *, in_turn: bool = False
) -> list[Result]:
    """Results of `work` over consecutive slices of the rows, in order; at least one slice.

    in_turn: one piece after the other. For work with matrix products: BLAS has threads of its own,
    which several callers at once would share.
    """
    # A last piece of few rows joins the one before it.
    starts = list(range(0, max(num_rows - CHUNK // 2, 1), CHUNK))
    ends = [*starts[1:], num_rows]
    slices = [slice(start, end) for start, end in zip(starts, ends, strict=True)]
    if in_turn or len(slices) == 1:
        return [work(part) for part in slices]
    return list(_pool().map(work, slices))


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(_MAX_THREADS, usable_cpus()), "codec")

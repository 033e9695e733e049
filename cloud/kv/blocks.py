"""Which KV blocks are free, counted exactly. Without torch.

A block is some positions of one layer (`optimizer.policy.kv_blocks`). A session asks for
`num_blocks` blocks of each of `num_layers` layers. Attention reads a layer in place where its
blocks are consecutive, so the smallest hole that is large enough is taken (best fit). Where there
is none, the request is cut across the largest holes, each a run of fewer blocks of all layers.
Fragmentation thus makes block tables longer and refuses no session.
"""

from __future__ import annotations

import bisect
from typing import NamedTuple


class Run(NamedTuple):
    """`num_blocks` blocks of each of `num_layers` layers, layer after layer from `start` on."""

    start: int
    num_layers: int
    num_blocks: int

    @property
    def size(self) -> int:
        """Blocks in all."""
        return self.num_layers * self.num_blocks


class BlockAllocator:
    """Free runs of `num_blocks` blocks in order of address. Not thread-safe."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_free = num_blocks
        # Holes as (start, size), neighbours merged, sorted.
        self._holes: list[tuple[int, int]] = [(0, num_blocks)] if num_blocks else []

    @property
    def num_holes(self) -> int:
        """How many runs of free blocks there are, none touching another."""
        return len(self._holes)

    def take(self, num_layers: int, num_blocks: int) -> tuple[Run, ...] | None:
        """Runs of `num_layers` layers that together hold `num_blocks` blocks; None: no room.

        Enough blocks may be free and still not fit where holes are shorter than one block of every
        layer. Sessions of equal depth never leave such holes.
        """
        size = num_layers * num_blocks
        if size == 0:  # a session that enters behind the last layer caches nothing
            return (Run(0, num_layers, num_blocks),)
        fitting = [(hole[1], hole[0]) for hole in self._holes if hole[1] >= size]
        if fitting:
            start = min(fitting)[1]
            self._cut(start, size)
            return (Run(start, num_layers, num_blocks),)
        if size > self.num_free:
            return None
        runs: list[Run] = []
        left = num_blocks
        for hole_size, start in sorted(((size, at) for at, size in self._holes), reverse=True):
            count = min(left, hole_size // num_layers)
            if count == 0:
                break
            runs.append(Run(start, num_layers, count))
            left -= count
        if left:
            return None
        for run in runs:
            self._cut(run.start, run.size)
        return tuple(runs)

    def give_back(self, run: Run) -> None:
        """Free a run that `take` gave. Raises ValueError where a part of it is free already."""
        if run.size == 0:
            return
        start, end = run.start, run.start + run.size
        at = bisect.bisect_left(self._holes, (start, 0))
        before = self._holes[at - 1] if at else (0, 0)
        after = self._holes[at] if at < len(self._holes) else (self.num_blocks, 0)
        if sum(before) > start or after[0] < end:
            raise ValueError(f"blocks {start} to {end} are not all taken")
        first, last = at, at
        if at and sum(before) == start:
            first, start = at - 1, before[0]
        if after[1] and after[0] == end:
            last, end = at + 1, sum(after)
        self._holes[first:last] = [(start, end - start)]
        self.num_free += run.size

    def _cut(self, start: int, size: int) -> None:
        """Take the first `size` blocks of the hole at `start`."""
        at = bisect.bisect_left(self._holes, (start, 0))
        _, whole = self._holes[at]
        self._holes[at : at + 1] = [(start + size, whole - size)] if whole > size else []
        self.num_free -= size

"""Keys and values of all sessions in blocks: reserved at admission, counted exactly, shared.

One arena holds everything: [blocks * KV_BLOCK_TOKENS, 2 * KV heads, head_dim], keys before values.
A block is KV_BLOCK_TOKENS positions of one layer. A session reserves the blocks of its whole
`max_tokens` at admission, so it can never run out later; growing and rolling back change a number.

A session's block table is a list of *extents*. An extent is a run of blocks with the same positions
of every layer, so that attention reads a history in place: torch has no paged attention for CPUs,
and gathering would copy every history at every step. A session has one extent, and more only where
no hole is large enough or where it shares its first positions with others. Extents count their
users, because several leases may read one (`cloud.kv.prefix_cache`).

The operating system gives the arena memory only as it is written. On a CPU the limit therefore
costs address space, not RAM.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple

import torch

from cloud.errors import BadOpenError, CapacityError, StartError
from cloud.kv.blocks import BlockAllocator, Run
from optimizer.policy.kv_blocks import KV_BLOCK_TOKENS, num_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class KvShape:
    """What one token costs in one layer: K and V of `num_kv_heads` x `head_dim` values."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype = torch.float32

    @property
    def block_bytes(self) -> int:
        """Bytes of one block: KV_BLOCK_TOKENS positions of one layer."""
        return 2 * self.num_kv_heads * self.head_dim * self.dtype.itemsize * KV_BLOCK_TOKENS

    def num_bytes(self, *, split: int, max_tokens: int) -> int:
        """Bytes that a session entering at layer `split` reserves: whole blocks, every layer."""
        return (self.num_layers - split) * num_blocks(max_tokens) * self.block_bytes


class Extent:
    """A run of blocks with the same positions of every layer, and the number of its users."""

    __slots__ = ("num_cached", "num_leases", "run")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.num_leases = 0
        self.num_cached = 0  # references of the prefix cache

    @property
    def num_tokens(self) -> int:
        """Positions that it holds."""
        return self.run.num_blocks * KV_BLOCK_TOKENS


class Segment(NamedTuple):
    """Positions [begin, end) of a session are in `extent`, from the extent's first place on."""

    extent: Extent
    begin: int
    end: int


class ArenaSpan(NamedTuple):
    """`num_rows` consecutive rows of the arena; those of the lease's layer `i` begin at
    `row + i * stride`."""

    row: int
    stride: int
    num_rows: int


class KvLease:
    """One session's blocks. `length` tokens are valid; rolling back changes `length`.

    `overflowed`: a row of the session left float32's range, so its keys and values may be NaN.
    Other sessions read the first `num_frozen` tokens too, or may come to: never write there.
    `num_left` tokens left (`cloud.kv.kept`): a new row's position is so far beyond its place.
    """

    __slots__ = (
        "_on_close",
        "_segments",
        "length",
        "max_tokens",
        "num_bytes",
        "num_frozen",
        "num_left",
        "overflowed",
        "pool",
        "split",
        "stop",
    )

    def __init__(
        self,
        pool: KvPool,
        segments: tuple[Segment, ...],
        *,
        split: int,
        stop: int,
        max_tokens: int,
        num_shared: int,
    ) -> None:
        self.pool = pool
        self._segments: tuple[Segment, ...] | None = segments
        self._on_close: list[Callable[[KvLease], None]] = []
        self.split = split
        self.stop = stop
        self.max_tokens = max_tokens
        self.num_frozen = num_shared
        self.length = num_shared
        self.overflowed = False
        self.num_left = 0
        self.num_bytes = sum(s.extent.run.size for s in segments) * pool.shape.block_bytes

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The block table, by position. RuntimeError once closed."""
        if self._segments is None:
            raise RuntimeError("this KV lease was closed")
        return self._segments

    @property
    def num_layers(self) -> int:
        """Layers that it has keys and values of: from `split` to before `stop`."""
        return self.stop - self.split

    def spans(self, begin: int, end: int) -> Iterator[ArenaSpan]:
        """Where positions [begin, end) are in the arena, in order."""
        for extent, first, last in self.segments:
            low, high = max(begin, first), min(end, last)
            if low < high:
                row = extent.run.start * KV_BLOCK_TOKENS + low - first
                yield ArenaSpan(row, extent.num_tokens, high - low)

    def rollback(self, length: int) -> None:
        """Forget every token from position `length` on."""
        self.length = min(self.length, length)

    def on_close(self, call: Callable[[KvLease], None]) -> None:
        """Call `call` with the lease once it is closed, on the thread that closes it."""
        self._on_close.append(call)

    def close(self) -> None:
        """Free the blocks, once, however often this is called."""
        if self._segments is not None:
            extents = [segment.extent for segment in self._segments]
            self._segments = None
            self.pool._release(extents)
            for call in self._on_close:
                call(self)

    def __enter__(self) -> KvLease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class SharedPrefix(NamedTuple):
    """The first positions of a session, kept for others that begin with the same frames."""

    split: int
    segments: tuple[Segment, ...]

    @property
    def num_tokens(self) -> int:
        """Positions that are shared."""
        return self.segments[-1].end if self.segments else 0


class KvPool:
    """Gives leases while they fit into `limit_bytes`. Safe to use from several threads.

    Where room is short the pool calls `reclaim`, which drops one cached prefix (False: there is
    none); the pool's lock is held meanwhile. Raises StartError where the arena cannot be
    allocated.
    """

    def __init__(
        self,
        shape: KvShape,
        *,
        limit_bytes: int,
        device: torch.device | str = "cpu",
        reclaim: Callable[[], bool] = lambda: False,
        num_ranks: int = 1,
    ) -> None:
        """num_ranks: the arena holds the KV heads of one rank of so many, and bytes are counted
        for all of them; `is_rank` then."""
        self.shape = shape
        self.is_rank = num_ranks > 1
        self.limit_bytes = limit_bytes
        self._reclaim = reclaim
        self.lock = threading.RLock()
        self._blocks = BlockAllocator(limit_bytes // shape.block_bytes)
        self._num_cached_blocks = 0  # held by the prefix cache alone
        self._num_leases = 0
        rows = self._blocks.num_blocks * KV_BLOCK_TOKENS
        try:
            self.arena = torch.empty(
                (rows, 2 * shape.num_kv_heads // num_ranks, shape.head_dim),
                dtype=shape.dtype,
                device=device,
            )
        except (RuntimeError, MemoryError) as error:
            raise StartError(f"no {limit_bytes} bytes for the KV cache: {error}") from error

    @property
    def num_blocks(self) -> int:
        """Blocks in all."""
        return self._blocks.num_blocks

    @property
    def used_blocks(self) -> int:
        """Blocks that sessions hold, shared ones counted once."""
        return self._blocks.num_blocks - self._blocks.num_free - self._num_cached_blocks

    @property
    def cached_blocks(self) -> int:
        """Blocks that only the prefix cache holds; a session that needs them gets them."""
        return self._num_cached_blocks

    @property
    def used_bytes(self) -> int:
        """Bytes of the blocks that sessions hold."""
        return self.used_blocks * self.shape.block_bytes

    @property
    def num_leases(self) -> int:
        """Leases that are open."""
        return self._num_leases

    def lease(
        self,
        *,
        split: int,
        max_tokens: int,
        stop: int | None = None,
        shared: SharedPrefix | None = None,
        shareable_tokens: int = 0,
    ) -> KvLease:
        """Reserve `max_tokens` tokens of layers [split, stop); stop: None: up to the last layer.

        shared: positions that are there already; their blocks are not reserved again.
        shareable_tokens: how many first positions others may come to share. They get extents of
        their own, which can outlive the session.

        Raises CapacityError where it does not fit now, BadOpenError where it never will.
        """
        num_shared = shared.num_tokens if shared else 0
        cut = max(num_shared, shareable_tokens // KV_BLOCK_TOKENS * KV_BLOCK_TOKENS)
        spans = [span for span in ((num_shared, cut), (cut, max_tokens)) if span[0] < span[1]]
        stop = self.shape.num_layers if stop is None else stop
        layers = stop - split
        needed = layers * sum(num_blocks(end - begin) for begin, end in spans)
        if layers * num_blocks(max_tokens) > self.num_blocks:
            num_bytes = layers * num_blocks(max_tokens) * self.shape.block_bytes
            raise BadOpenError(
                f"{max_tokens} tokens need {num_bytes} bytes of KV cache; "
                f"this server has {self.limit_bytes} for all sessions together"
            )
        segments = list(shared.segments) if shared else []
        with self.lock:
            for segment in segments:  # first, so that `reclaim` cannot take them
                self._count(segment.extent, leases=1)
            for begin, end in spans:
                runs = self._take(layers, num_blocks(end - begin))
                if runs is None:
                    for segment in segments:
                        self._count(segment.extent, leases=-1)
                    free = self._blocks.num_free * self.shape.block_bytes
                    raise CapacityError(
                        f"KV cache is full: {needed * self.shape.block_bytes} bytes needed, "
                        f"{free} of {self.limit_bytes} free"
                    )
                for run in runs:
                    extent = Extent(run)
                    extent.num_leases = 1
                    filled = min(end, begin + extent.num_tokens)
                    segments.append(Segment(extent, begin, filled))
                    begin = filled
            self._num_leases += 1
        return KvLease(
            self,
            tuple(segments),
            split=split,
            stop=stop,
            max_tokens=max_tokens,
            num_shared=num_shared,
        )

    def share(self, lease: KvLease, num_tokens: int) -> SharedPrefix:
        """The first `num_tokens` of a lease, for the cache to hold until `forget`."""
        segments = tuple(
            Segment(extent, begin, min(end, num_tokens))
            for extent, begin, end in lease.segments
            if begin < num_tokens
        )
        with self.lock:
            for segment in segments:
                self._count(segment.extent, cached=1)
            lease.num_frozen = max(lease.num_frozen, num_tokens)
        return SharedPrefix(lease.split, segments)

    def forget(self, prefix: SharedPrefix) -> None:
        """Release a prefix of the cache; its blocks are free once no session reads them."""
        with self.lock:
            for segment in prefix.segments:
                self._count(segment.extent, cached=-1)

    def _take(self, layers: int, blocks: int) -> tuple[Run, ...] | None:
        while (runs := self._blocks.take(layers, blocks)) is None:
            if not self._reclaim():
                return None
        return runs

    def _release(self, extents: Sequence[Extent]) -> None:
        with self.lock:
            self._num_leases -= 1
            for extent in extents:
                self._count(extent, leases=-1)

    def _count(self, extent: Extent, *, leases: int = 0, cached: int = 0) -> None:
        """Change the number of an extent's users; without users it is freed."""
        was_cached_only = extent.num_cached > 0 and extent.num_leases == 0
        extent.num_leases += leases
        extent.num_cached += cached
        is_cached_only = extent.num_cached > 0 and extent.num_leases == 0
        self._num_cached_blocks += extent.run.size * (is_cached_only - was_cached_only)
        if extent.num_leases == 0 and extent.num_cached == 0:
            self._blocks.give_back(extent.run)

"""The fixed context of a session: the whole segments of its prompt, and how they are indexed.

Rows of the prompt that other sessions may share (`Open.shareable_tokens`) attend exactly. All rows
behind them select keys of the fixed context and see everything behind it. So what a row sees
depends on the prompt, on the position and on the row alone: not on who ran the prompt, in which
frames, or when. A session that comes again, here or on another server, gets the same.

Segments are indexed while the prompt runs, on a thread of their own. Their indexes stay with the
beginnings that the prefix cache keeps.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeAlias

import torch
from torch import Tensor

from cloud.squeezed.clusters import SEGMENT_TOKENS
from cloud.squeezed.index import FixedIndex, SegmentIndex, SegmentRows, index_segment

logger = logging.getLogger(__name__)

# Queries that the threshold is chosen with, and tokens of the prompt that are always read exactly:
# as in arXiv:2411.09688.
NUM_QUERIES: Final = 100
_FIRST_RECORDED: Final = SEGMENT_TOKENS - NUM_QUERIES  # of a segment's rows

# An index that is being made; None where that failed.
Indexing: TypeAlias = Future[SegmentIndex | None]
# Copies keys and values of positions [begin, end) of some layers: float32 [N, KV, end - begin, d]
# each.
ReadKeys: TypeAlias = Callable[[Sequence[int], int, int], tuple[Tensor, Tensor]]


class Squeezing:
    """How the sessions of a model squeeze, and what all of them came to.

    ratio: share of a fixed context's keys that is read. scales: of the layers that squeeze, the
    factor on their scores; the others attend exactly. num_read, num_seen: keys of fixed contexts
    that were read, and keys that exact attention would have read; the model thread counts them.
    """

    def __init__(self, ratio: float, scales: Mapping[int, float]) -> None:
        self.ratio = ratio
        self.scales = dict(scales)
        self.num_read = 0
        self.num_seen = 0
        self._indexes: weakref.WeakSet[SegmentIndex] = weakref.WeakSet()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="squeeze")

    @property
    def num_bytes(self) -> int:
        """Bytes of all indexes that sessions and kept beginnings hold."""
        return sum(one.num_bytes for one in tuple(self._indexes))

    @property
    def read_share(self) -> float:
        """Keys read of those of fixed contexts; 1 where no row has selected yet."""
        return self.num_read / self.num_seen if self.num_seen else 1.0

    def begin(
        self, *, split: int, shareable_tokens: int, held: Sequence[Indexing] = ()
    ) -> FixedContext | None:
        """The fixed context of a session; None where it can share nothing.

        held: indexes of the segments of the beginning that it was found to have.
        """
        layers = [layer for layer in sorted(self.scales) if layer >= split]
        if not shareable_tokens or not layers:
            return None
        return FixedContext(self, layers, shareable_tokens=shareable_tokens, held=held)

    def index(
        self, rows: SegmentRows, before: Sequence[Indexing], scales: Sequence[float]
    ) -> Indexing:
        """Have a segment indexed. before: those in front of it."""

        def make() -> SegmentIndex | None:
            try:
                # Submitted earlier to the one thread: they are done.
                found = [one.result() for one in before]
                known = [one for one in found if one is not None]
                if len(known) < len(found):
                    return None
                made = index_segment(rows, known, scales, self.ratio)
            except Exception:  # the sessions attend exactly
                logger.exception("indexing a prompt's keys failed")
                return None
            self._indexes.add(made)
            return made

        return self._worker.submit(make)


class FixedContext:
    """See the module's docstring. The model thread uses it; made on the event loop."""

    def __init__(
        self,
        squeezing: Squeezing,
        layers: Sequence[int],
        *,
        shareable_tokens: int,
        held: Sequence[Indexing],
    ) -> None:
        self.layers = tuple(layers)
        self.squeezing = squeezing
        self._scales = {layer: squeezing.scales[layer] for layer in layers}
        self._shareable_tokens = shareable_tokens
        self._num_segments = max(0, shareable_tokens - NUM_QUERIES) // SEGMENT_TOKENS
        self._segments = list(held)
        self._queries: dict[int, Tensor] = {}  # by segment, [N, NUM_QUERIES, H, d]
        self._index: FixedIndex | None = None

    @property
    def num_tokens(self) -> int:
        """Positions of the fixed context: whole segments, and not the prompt's last tokens."""
        return self._num_segments * SEGMENT_TOKENS

    def selecting(self, start: int, stop: int) -> range:
        """The positions of rows [start, stop) that select keys.

        None of a run of rows that begins within the fixed context: its index cannot be there.
        """
        if not self._num_segments or start < self.num_tokens:
            return range(0)
        return range(max(start, self._shareable_tokens), stop)

    def most_rows(self, start: int, num_rows: int) -> int:
        """How many of `num_rows` rows from `start` on may run in one batch.

        Rows that select run in a later batch than the fixed context.
        """
        if start < self.num_tokens and start + num_rows > self._shareable_tokens:
            return self.num_tokens - start
        return num_rows

    def rewind(self, start: int) -> None:
        """Rows from position `start` on are about to run, perhaps again."""
        if start // SEGMENT_TOKENS < len(self._segments):
            del self._segments[start // SEGMENT_TOKENS :]
        if start < self.num_tokens:
            self._index = None

    def recorded(self, start: int, stop: int) -> list[int]:
        """The positions of rows [start, stop) whose queries `take` needs."""
        stop = min(stop, self._shareable_tokens)
        return [place for place in range(start, stop) if _is_recorded(place)]

    def take(self, positions: Sequence[int], queries: Tensor) -> None:
        """The rotated queries of rows at `positions`, [L, n, H, d] from layer 0 of `queries` on."""
        for row, position in enumerate(positions):
            segment, place = divmod(position, SEGMENT_TOKENS)
            kept = self._queries.get(segment)
            if kept is None:
                shape = (queries.shape[0], NUM_QUERIES, *queries.shape[2:])
                kept = self._queries[segment] = torch.zeros(shape)
            kept[:, place - _FIRST_RECORDED] = queries[:, row]

    def ran(self, stop: int, read_keys: ReadKeys) -> None:
        """Rows up to before position `stop` have run: index the segments that are complete."""
        stop = min(stop, self._shareable_tokens)
        while (end := (len(self._segments) + 1) * SEGMENT_TOKENS) <= stop:
            queries = self._queries.pop(len(self._segments), None)
            if queries is None:
                return
            keys, values = read_keys(self.layers, end - SEGMENT_TOKENS, end)
            scales = [self._scales[layer] for layer in self.layers]
            made = self.squeezing.index(
                SegmentRows(keys, values, queries), self._segments[:], scales
            )
            self._segments.append(made)

    def index(self) -> FixedIndex | None:
        """The finished index, after a wait where it is still made. None: there is none, so that
        rows attend exactly."""
        if self._index is None and 0 < self._num_segments <= len(self._segments):
            found = [one.result() for one in self._segments[: self._num_segments]]
            segments = tuple(one for one in found if one is not None)
            if len(segments) == len(found):
                self._index = FixedIndex(
                    segments=segments,
                    places={layer: place for place, layer in enumerate(self.layers)},
                    scales=self._scales,
                )
        return self._index

    def held(self, num_tokens: int) -> tuple[Indexing, ...] | None:
        """The indexes of a beginning of `num_tokens`, for a session that goes on from there.

        None where it must not be kept. The queries of its last rows would be missing: whoever went
        on from there could not index the segment.
        """
        if _is_recorded(num_tokens - 1) and num_tokens % SEGMENT_TOKENS:
            return None
        whole = num_tokens // SEGMENT_TOKENS
        return tuple(self._segments[:whole]) if whole <= len(self._segments) else None


def _is_recorded(position: int) -> bool:
    return position % SEGMENT_TOKENS >= _FIRST_RECORDED

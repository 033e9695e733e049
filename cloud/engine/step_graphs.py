"""Which CUDA graph runs a decode step, and the recordings kept.

A graph replays a fixed list of launches over fixed memory, so the host has nothing to do for a
layer. What is fixed is rounded up, so that few graphs serve all steps: the number of rows to a
bucket, whose spare rows belong to no session, and the longest history to a power of two. The lowest
layer of the step is exact. Sessions that enter deeper need no graph of their own: their rows lie in
the batch from the start, and every kernel leaves a row alone below its split.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Generic, NamedTuple, TypeVar

RecordT = TypeVar("RecordT")

# Steps of more rows run without a graph: their launches take less time than their work.
ROW_BUCKETS: Final = (
    1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448,
    512,
)  # fmt: skip
MIN_TOKENS: Final = 1024
MAX_GRAPHS: Final = 256


class GraphKey(NamedTuple):
    """What a graph is for: layers from `first_layer` on, `num_rows` rows, positions below
    `max_tokens`."""

    first_layer: int
    num_rows: int
    max_tokens: int


def graph_key(*, first_layer: int, num_rows: int, max_tokens: int) -> GraphKey | None:
    """The key for a step; None where it has too many rows for a graph."""
    at = bisect.bisect_left(ROW_BUCKETS, num_rows)
    if at == len(ROW_BUCKETS):
        return None
    tokens = max(MIN_TOKENS, 1 << (max_tokens - 1).bit_length())
    return GraphKey(first_layer, ROW_BUCKETS[at], tokens)


def keys_up_to(*, first_layer: int, num_rows: int, max_tokens: int) -> list[GraphKey]:
    """The keys of all steps of up to `num_rows` rows and `max_tokens` positions."""
    keys = []
    tokens = MIN_TOKENS
    while True:
        for rows in ROW_BUCKETS:
            keys.append(GraphKey(first_layer, rows, tokens))
            if rows >= num_rows:
                break
        if tokens >= max_tokens:
            return keys
        tokens *= 2


class StepGraphs(Generic[RecordT]):
    """Recordings by key. The one used longest ago goes when there are more than `limit`.

    record: makes one. Whatever it raises goes on.
    """

    def __init__(self, record: Callable[[GraphKey], RecordT], *, limit: int = MAX_GRAPHS) -> None:
        self._record = record
        self._limit = limit
        self._kept: OrderedDict[GraphKey, RecordT] = OrderedDict()
        self._version: object = None

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: GraphKey, version: object) -> RecordT:
        """The recording for `key`. version: of the memory that recordings use; when it changes, all
        of them are void."""
        if version != self._version:
            self._kept.clear()
            self._version = version
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            return found
        made = self._record(key)
        self._kept[key] = made
        if len(self._kept) > self._limit:
            self._kept.popitem(last=False)
        return made

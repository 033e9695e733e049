"""What the compiled kernel reads of a step's fixed contexts, and what it tells of them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cloud.attention.native import RowHistories
from cloud.attention.squeezed_step import SqueezedStep
from cloud.kernel.library import MAX_THREADS, CPiece, CSegment, CSqueeze
from cloud.squeezed.clusters import NUM_CLUSTERS, SEGMENT_TOKENS
from cloud.squeezed.index import FixedIndex


@dataclass(kw_only=True)
class NativeSqueeze:
    """Fields of `CStep` for one step, and what lies behind their pointers.

    num_read: int64 [T, KV], keys of fixed contexts that the rows read in all layers; None: no row
    selects. num_clusters: the most that a row has, beside the keys that it reads.
    """

    fields: dict[str, int] = field(default_factory=dict)
    num_read: Tensor | None = None
    num_clusters: int = 0
    held: list[Any] = field(default_factory=list)

    def pointer(self, tensor: Tensor) -> int:
        """The address of a tensor, which stays alive with this."""
        self.held.append(tensor)
        return tensor.data_ptr()


def native_squeeze(
    squeezed: SqueezedStep, histories: RowHistories, layers: range, heads: tuple[int, int, int]
) -> NativeSqueeze:
    """What a step over `layers` needs. heads: query heads, key-value heads, channels of a head."""
    num_heads, num_kv_heads, head_dim = heads
    num_rows = len(histories.first_piece) - 1
    made = NativeSqueeze()
    if squeezed.num_kept:
        kept = torch.full((num_rows,), -1, dtype=torch.int64)
        kept[squeezed.kept_rows] = torch.arange(squeezed.num_kept)
        queries = squeezed.room_for_queries(layers, num_heads, head_dim)
        made.fields |= {
            "kept": made.pointer(kept),
            "queries": made.pointer(queries),
            "num_kept": squeezed.num_kept,
            "kept_layer": layers.start,
        }
    if squeezed.selecting:
        _select(made, squeezed, histories, (num_heads, num_kv_heads))
    return made


def count_read(made: NativeSqueeze, squeezed: SqueezedStep, num_kv_heads: int) -> None:
    """Tell the contexts how many keys were read. The step has run."""
    for rows in squeezed.selecting:
        if made.num_read is not None:
            num_read = int(made.num_read[rows.begin : rows.end].sum())
            squeezed.count(rows, num_read, num_kv_heads * len(rows.index.places))


def _select(
    made: NativeSqueeze, squeezed: SqueezedStep, histories: RowHistories, heads: tuple[int, int]
) -> None:
    num_heads, num_kv_heads = heads
    num_rows = len(histories.first_piece) - 1
    number_of = torch.full((num_rows,), -1, dtype=torch.int64)
    squeezes = (CSqueeze * len(squeezed.selecting))()
    most = 0  # segments
    for number, rows in enumerate(squeezed.selecting):
        number_of[rows.begin : rows.end] = number
        squeezes[number] = _struct(rows.index)
        most = max(most, len(rows.index.segments))
        made.held.append(rows.index)
    made.held.append(squeezes)
    made.num_read = torch.zeros(num_rows, num_kv_heads, dtype=torch.int64)
    # A run of selected keys has one at its front that is not selected, or begins a piece.
    most_pieces = int(histories.first_piece.diff().max())
    most_picked = most * SEGMENT_TOKENS // 2 + 2 * most_pieces + 1
    made.num_clusters = most * NUM_CLUSTERS
    most_scores = (num_heads // num_kv_heads + 3) * made.num_clusters
    size = MAX_THREADS * most_picked * ctypes.sizeof(CPiece)
    made.fields |= {
        "squeezed": made.pointer(number_of),
        "squeezes": ctypes.addressof(squeezes),
        "num_read": made.pointer(made.num_read),
        "picked": made.pointer(torch.empty(size, dtype=torch.uint8)),
        "cluster_scores": made.pointer(torch.empty(MAX_THREADS * most_scores)),
        "most_picked": most_picked,
        "most_cluster_scores": most_scores,
    }


def _struct(index: FixedIndex) -> CSqueeze:
    """The index as the kernel reads it; made once, kept with the index."""
    struct = index.native.get("struct")
    if isinstance(struct, CSqueeze):
        return struct
    segments = (CSegment * len(index.segments))()
    for place, one in enumerate(index.segments):
        segments[place] = CSegment(
            labels=one.labels.data_ptr(),
            centroids=one.centroids.data_ptr(),
            counts=one.counts.data_ptr(),
            values=one.values.data_ptr(),
        )
    struct = CSqueeze(
        segments=ctypes.addressof(segments),
        num_segments=len(index.segments),
        first_layer=min(index.places),
        threshold=index.threshold,
    )
    index.native["segments"] = segments
    index.native["struct"] = struct
    return struct

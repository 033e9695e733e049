"""One session's part of a packed batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cloud.attention.packed_step import StepEntry
from cloud.engine.drawing import Drawing
from cloud.kv.pool import KvLease
from cloud.squeezed.fixed_context import FixedContext

FloatRows: TypeAlias = npt.NDArray[np.float32]
# Rows whose logits exist at once for a `watch`: 32 rows of 150,000 tokens are 19 MB.
WATCHED_CHUNK: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEntry:
    """One session's rows: hidden states float32 [T, D] that enter layer `lease.split`.

    Their positions begin at `lease.length`. The last `num_logits` of them need logits. below: the
    rows are the embedding's; they run through the layers below `lease.split` first, whose keys and
    values this lease holds. None: they enter at the split. watch: is told the logits of the first
    `num_watched` rows, in chunks: the index of the chunk's first row, and float32 [C, V]. It must
    not raise. drawing: what the device may draw the logits rows' tokens with (`Drawing`); None: the
    logits themselves are needed. tap: is told the states of all rows that the engine was asked to
    `capture`, float32 [T, K D], its own copy; None: nobody wants them. It must not raise.
    context: the session's fixed context; None: its rows attend exactly.
    """

    lease: KvLease
    rows: Tensor
    num_logits: int
    below: KvLease | None = None
    num_watched: int = 0
    watch: Callable[[int, FloatRows], None] | None = None
    drawing: Drawing | None = None
    tap: Callable[[Tensor], None] | None = None
    context: FixedContext | None = None


def step_entries(batch: Sequence[BatchEntry]) -> tuple[list[int], list[StepEntry]]:
    """The entries of a step, by split: entries[i] is batch[order[i]]. Returns order, entries."""
    order = sorted(range(len(batch)), key=lambda index: batch[index].lease.split)
    entries: list[StepEntry] = []
    end = 0
    for index in order:
        one = batch[index]
        entry = StepEntry(
            one.lease,
            start=one.lease.length,
            begin=end,
            num_rows=one.rows.shape[0],
            context=one.context,
        )
        entries.append(entry)
        end = entry.end
    return order, entries


def show_logits(entry: BatchEntry, hidden: Tensor, logits: Callable[[Tensor], Tensor]) -> None:
    """Tell `entry.watch` the logits of its rows.

    hidden: the entry's rows, [T, D], as the last layer gave them. logits: what the model's norm and
    head make of such rows.
    """
    if entry.watch is None:
        return
    for begin in range(0, entry.num_watched, WATCHED_CHUNK):
        rows = hidden[begin : min(begin + WATCHED_CHUNK, entry.num_watched)]
        entry.watch(begin, logits(rows).cpu().numpy())


def logit_rows(
    batch: Sequence[BatchEntry], order: Sequence[int], entries: Sequence[StepEntry]
) -> tuple[list[int], list[tuple[int, int]]]:
    """The packed rows that need logits, and where among them each entry's lie, in batch's order.

    entries: those of the step; entries[i] is batch[order[i]].
    """
    wanted: list[int] = []
    spans: list[tuple[int, int]] = [(0, 0)] * len(batch)
    for index, entry in zip(order, entries, strict=True):
        count = batch[index].num_logits
        spans[index] = (len(wanted), len(wanted) + count)
        wanted.extend(range(entry.end - count, entry.end))
    return wanted, spans

"""Attention in the compiled kernel (`cloud.kernel`), and the layout of histories it reads.

`cloud.engine.native_stack` runs this attention inside whole layers and takes only the layout from
here. The backend runs the same loops alone, for layers that torch computes. It is not the default
of any device: it must be named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from cloud.attention.base import AttentionBackend, AttentionTraits
from cloud.attention.in_place import InPlaceAttention
from cloud.attention.packed_step import PackedStep, StepEntry
from cloud.kernel import library as native

MAX_HEAD_DIM: Final = 128
LANES: Final = 16  # float32 numbers of a vector: a head has whole vectors of channels


@dataclass(frozen=True, slots=True, kw_only=True)
class RowHistories:
    """What each row of a step sees, as the kernel reads it.

    pieces: int64 [P, 3], runs of arena rows: (row of layer 0, stride from layer to layer, number
    of rows). first_piece: int64 [T + 1], where each row's pieces begin. longest: the most
    positions that a row sees, rounded up to whole vectors.
    """

    pieces: Tensor
    first_piece: Tensor
    longest: int


def row_histories(entries: Sequence[StepEntry], window: int | None = None) -> RowHistories:
    """The histories of all rows of `entries`, each row itself included."""
    pieces: list[tuple[int, int, int]] = []
    first = [0]
    longest = 0
    for entry in entries:
        split = entry.lease.split
        for stop in range(entry.start + 1, entry.stop + 1):
            begin = 0 if window is None else max(0, stop - window)
            for row, stride, count in entry.lease.spans(begin, stop):
                pieces.append((row - split * stride, stride, count))
            longest = max(longest, stop - begin)
            first.append(len(pieces))
    return RowHistories(
        pieces=torch.tensor(pieces, dtype=torch.int64),
        first_piece=torch.tensor(first, dtype=torch.int64),
        longest=-(-longest // LANES) * LANES,
    )


def suits_heads(head_dim: int) -> bool:
    """Whether the kernel has loops for heads of this many channels."""
    return head_dim % LANES == 0 and head_dim <= MAX_HEAD_DIM


class NativeAttention(AttentionBackend):
    """Row by row and head by head, on the kernel's own threads. For float32 on a CPU.

    A row's result has the same bits in every batch and on any number of threads.
    """

    name: ClassVar[str] = "native"

    def __init__(self, step: PackedStep) -> None:
        super().__init__(step)
        self._kernel = native.load()
        self._others = InPlaceAttention(step)
        self._histories: dict[int | None, RowHistories] = {}  # by window

    @classmethod
    def runs_on(cls, device: torch.device) -> bool:
        """See AttentionBackend: on a CPU where the kernel was built."""
        return device.type == "cpu" and native.load() is not None

    def attend(
        self, layer: int, entries: Sequence[StepEntry], query: Tensor, traits: AttentionTraits
    ) -> Tensor:
        """See AttentionBackend."""
        arena = self.step.arena
        plain = traits.cap is None and traits.sinks is None
        suits = plain and suits_heads(query.shape[2]) and arena.dtype == torch.float32
        if self._kernel is None or not suits:
            return self._others.attend(layer, entries, query, traits)
        histories = self._histories.get(traits.window)
        if histories is None:
            histories = row_histories(self.step.entries, traits.window)
            self._histories[traits.window] = histories
        num_kv_heads = arena.shape[1] // 2
        num_rows, num_heads, head_dim = query.shape
        # The kernel finds queries at the beginning of rows that have keys and values too.
        wide = torch.empty(num_rows, num_heads + 2 * num_kv_heads, head_dim)
        wide[:, :num_heads] = query
        mixed = torch.empty(num_rows, num_heads, head_dim)
        scores = torch.empty(native.MAX_THREADS * native.MAX_GROUP * histories.longest)
        self._kernel.set_threads(torch.get_num_threads())
        self._kernel.attend(
            native.CStep(
                num_rows=num_rows,
                heads=num_heads,
                kv_heads=num_kv_heads,
                head_dim=head_dim,
                arena=arena.data_ptr(),
                first_piece=histories.first_piece.data_ptr(),
                pieces=histories.pieces.data_ptr(),
                wide=wide.data_ptr(),
                mixed=mixed.data_ptr(),
                scores=scores.data_ptr(),
                history=histories.longest,
            ),
            layer,
            traits.scale,
        )
        return mixed

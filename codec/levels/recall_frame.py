"""One frame of a session while it is coded: which rows come first, and what is known of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from codec.arrays import F32, I8, I16, I32, I64, U8
from codec.rows import RowMask
from codec.session_rows import LONGEST_CONTEXT, References


class CodedRows(NamedTuple):
    """Offsets [n], codes and models [n, D], what both sides then hold, rows that fit no code."""

    offsets: I8
    codes: I32
    models: U8
    values: I16
    strange: RowMask


@dataclass(frozen=True, slots=True)
class RecallWork:
    """One frame while it is coded: T rows and what is known of them so far."""

    components: F32
    step_index: U8
    references: References
    first_position: int
    order: I64  # how many rows of the frame have to come before a row, one after the other
    values: I16
    offsets: I8
    codes: I32
    models: U8

    @classmethod
    def of(
        cls, components: F32, step_index: U8, references: References, first: int, num_rows: int
    ) -> RecallWork:
        """Nothing is coded yet."""
        order = [0] * num_rows
        for index, position in enumerate(references.positions.tolist()):
            if position >= first:
                order[index] = order[position - first] + 1
        shape = components.shape
        return cls(
            components,
            step_index,
            references,
            first,
            np.array(order, dtype=np.int64),
            np.zeros(shape, dtype=np.int16),
            np.zeros(num_rows, dtype=np.int8),
            np.zeros(shape, dtype=np.int32),
            np.zeros(shape, dtype=np.uint8),
        )

    def refer_to(self, rows: RowMask) -> RowMask:
        """Which rows refer to one of these, or to one that does."""
        found = np.zeros(len(rows), dtype=np.bool_)
        for index, position in enumerate(self.references.positions.tolist()):
            at = position - self.first_position
            found[index] = at >= 0 and (rows[at] or found[at])
        return found

    def groups(self, taken: RowMask) -> Iterator[tuple[int, I64]]:
        """The rows taken, by context, so that each comes after the row that it refers to."""
        which = np.flatnonzero(taken)
        order = self.order[which]
        for depth in range(int(order.max(initial=-1)) + 1):
            yield from groups_of(self.references.contexts, which[order == depth])


def groups_of(contexts: U8, rows: I64) -> Iterator[tuple[int, I64]]:
    """Rows by context, ascending; contexts without rows are left out."""
    if len(rows) == 1:
        yield int(contexts[rows[0]]), rows
        return
    of_rows = contexts[rows]
    for context in range(LONGEST_CONTEXT + 1):
        part = rows[of_rows == context]
        if len(part):
            yield context, part

"""An answer made of several generations, one after the other: what they have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from edge.errors import InputError
from edge.generation.token_source import TokenSource

CANNOT_MOVE: Final = (
    "the split of this answer cannot move: build with --splits, and ask for no shift"
)


class AnswerParts:
    """Base of the token sources that are made of parts: reconnects add up, and one is cancelled.

    shifts: how often the context was cut. moves: how often the split moved. detail: why the device
    went on without a server. tables: the codec tables that were chosen, "" where none were;
    tables_bytes: what the prompt's first rows take under each.
    """

    shifts = 0
    moves = 0
    detail = ""
    tables = ""

    def __init__(self) -> None:
        self.tables_bytes: Mapping[str, int] = {}
        self._current: TokenSource | None = None
        self._past_reconnects = 0
        self._cancelled = False

    @property
    def reconnects(self) -> int:
        """Of all parts so far."""
        return self._past_reconnects + (0 if self._current is None else self._current.reconnects)

    def cancel(self) -> None:
        """See TokenSource."""
        self._cancelled = True
        if self._current is not None:
            self._current.cancel()

    def move_to(self, split: int) -> None:
        """From the next token on run at this split. InputError where it cannot move."""
        raise InputError(CANNOT_MOVE)

    def take_counts(self, part: AnswerParts) -> None:
        """What happened in a part that has parts itself happened in this answer."""
        self.shifts, self.moves = part.shifts, part.moves
        if part.tables:
            self.tables, self.tables_bytes = part.tables, part.tables_bytes

    def begin(self, part: TokenSource) -> TokenSource:
        """Make `part` the one that runs. It is cancelled at once if the answer was meanwhile."""
        self._past_reconnects = self.reconnects
        self._current = part
        if self._cancelled:  # when it was not there yet to be told
            part.cancel()
        return part

"""What a drafter keeps of one session, as the session feeds it: the rows that ran, and answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from cloud.engine.batch_entry import FloatRows
from cloud.engine.step_drafting import DraftState


class RanRows(NamedTuple):
    """Rows of a frame that stay in the cache.

    first_position: of the first one. token_ids: their input tokens. next_token: what the answer
    ends with, the token behind the last row; None where the frame asked for none. last_row: the
    last of them as it entered the split, [D]; None where the frame brought ids alone.
    """

    first_position: int
    token_ids: tuple[int, ...]
    next_token: int | None
    last_row: FloatRows | None = None


class SessionDrafts(DraftState, Protocol):
    """Belongs to the model thread."""

    @property
    def most(self) -> int:
        """Tokens to guess beyond an answer."""
        ...

    @property
    def tap(self) -> Callable[[Tensor], None] | None:
        """Is told the states of the frame's rows that the engine captures; None: nobody wants
        them."""
        ...

    def begin(self, first_position: int, *, is_ahead: bool = False) -> None:
        """A frame begins at `first_position`; what the cache held from there on is forgotten.

        is_ahead: it left before the answer to the frame before was known.
        """
        ...

    def ran(self, rows: RanRows) -> None:
        """All rows of the frame have run, and these of them stay."""
        ...

"""A drafter whose guesses a test chooses."""

from __future__ import annotations

from collections.abc import Sequence

from edge.draft.base import Guess, Rows


class Saying:
    """A drafter that always says the same."""

    def __init__(self, *guesses: Guess) -> None:
        self.said = guesses

    def extend(self, token_ids: Sequence[int], rows: Rows | None) -> None:
        pass

    def rollback(self, num_tokens: int) -> None:
        pass

    def guesses(self) -> tuple[Guess, ...]:
        return self.said

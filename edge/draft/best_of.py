"""Several drafters at once: of their guesses the one most likely to be right.

When two name the same token, that is a kind of its own: agreement of a look-up and a head says
more than either. Before it was measured, the two count as independent witnesses.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge.draft.acceptance import Acceptance
from edge.draft.drafter import Drafter, Guess, Rows


class BestOf:
    """See the module's docstring. acceptance: where the chances come from."""

    def __init__(self, drafters: Sequence[Drafter], acceptance: Acceptance) -> None:
        self._drafters = tuple(drafters)
        self._acceptance = acceptance

    def extend(self, token_ids: Sequence[int], rows: Rows | None) -> None:
        """See Drafter."""
        for drafter in self._drafters:
            drafter.extend(token_ids, rows)

    def rollback(self, num_tokens: int) -> None:
        """See Drafter."""
        for drafter in self._drafters:
            drafter.rollback(num_tokens)

    def guess(self) -> Guess | None:
        """See Drafter."""
        guesses = [guess for drafter in self._drafters if (guess := drafter.guess()) is not None]
        if not guesses:
            return None
        best = max(guesses, key=self._acceptance.probability)
        return next(
            (_agreed(best, other) for other in guesses if other is not best and _same(best, other)),
            best,
        )


def _same(one: Guess, other: Guess) -> bool:
    return one.token_id == other.token_id


def _agreed(best: Guess, other: Guess) -> Guess:
    kinds = "+".join(sorted((best.kind, other.kind)))
    doubt = (1.0 - best.prior) * (1.0 - other.prior)
    return Guess(best.token_id, kinds, 1.0 - doubt)

"""Several drafters at once: of their guesses, the ones most likely to be right come first.

When two drafters name the same token, that is a kind of guess of its own: agreement of a look-up
and a head says more than either. Until it is measured, the two count as independent evidence.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge.draft.acceptance import Acceptance
from edge.draft.base import Drafter, Guess, HearsCloud, Rows
from protos.messages import Drafts


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

    def hear(self, drafts: Drafts) -> None:
        """See HearsCloud: whoever of them listens."""
        for drafter in self._drafters:
            if isinstance(drafter, HearsCloud):
                drafter.hear(drafts)

    def guesses(self) -> tuple[Guess, ...]:
        """See Drafter. First guesses compete for the first place; the rest follow by chance."""
        lists = [guesses for drafter in self._drafters if (guesses := drafter.guesses())]
        if not lists:
            return ()
        firsts = [guesses[0] for guesses in lists]
        best = max(firsts, key=self._acceptance.probability)
        others = sorted(
            (guess for guesses in lists for guess in guesses if not _same(guess, best)),
            key=self._acceptance.probability,
            reverse=True,
        )
        agreed = next(
            (_agreed(best, other) for other in firsts if other is not best and _same(best, other)),
            best,
        )
        kept = {guess.token_id: guess for guess in reversed(others)}
        return agreed, *(guess for guess in others if kept[guess.token_id] is guess)


def _same(one: Guess, other: Guess) -> bool:
    return one.token_id == other.token_id


def _agreed(best: Guess, other: Guess) -> Guess:
    kinds = "+".join(sorted((best.kind, other.kind)))
    doubt = (1.0 - best.prior) * (1.0 - other.prior)
    return Guess(best.token_id, kinds, 1.0 - doubt)

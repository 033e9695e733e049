"""Prompt lookup: what followed the last few tokens when they stood here before.

Saxena 2023, "Prompt Lookup Decoding", and Yang et al. 2023 (LLMA, arXiv:2304.04487): answers
copy from their prompts and from themselves. The longest run of last tokens that occurred before is
taken, its latest occurrence first. An index from runs to positions makes a look-up a few
dictionary reads, whatever the length of the sequence; it grows with each token and shrinks
again when tokens are taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edge.draft.drafter import Guess, Rows

MAX_RUN: Final = 5
MIN_RUN: Final = 1

# How often the token after a run's last occurrence came again, by the run's length (SmolLM2-135M on
# Spec-Bench questions, docs/drafting.md): where an online estimate starts.
PRIOR_OF_RUN: Final[tuple[float, ...]] = (0.0, 0.22, 0.5, 0.65, 0.68, 0.88)
PRIOR_OF_SECOND: Final = 0.1
LATEST: Final = 8  # occurrences of a run that are looked at for a second choice


class NgramDrafter:
    """See the module's docstring. min_run, max_run: how many last tokens have to match.

    Memory: one small list entry for each position and run length.
    """

    def __init__(self, *, min_run: int = MIN_RUN, max_run: int = MAX_RUN) -> None:
        if not 1 <= min_run <= max_run < len(PRIOR_OF_RUN):
            raise ValueError(f"runs of {min_run} to {max_run} tokens are not possible")
        self._lengths = range(max_run, min_run - 1, -1)
        self._tokens: list[int] = []
        # Where the token after each occurrence of a run stands, in rising order.
        self._after: dict[tuple[int, ...], list[int]] = {}

    def extend(self, token_ids: Sequence[int], rows: Rows | None = None) -> None:
        """See Drafter; the rows are not looked at."""
        tokens = self._tokens
        for token_id in token_ids:
            # The new token is what follows the runs that ended before it.
            at = len(tokens)
            for length in self._lengths:
                if length <= at:
                    self._after.setdefault(tuple(tokens[at - length :]), []).append(at)
            tokens.append(token_id)

    def rollback(self, num_tokens: int) -> None:
        """See Drafter."""
        tokens = self._tokens
        while len(tokens) > num_tokens:
            tokens.pop()
            at = len(tokens)
            for length in self._lengths:
                if length <= at:
                    run = tuple(tokens[at - length :])
                    places = self._after[run]
                    places.pop()
                    if not places:
                        del self._after[run]

    def guesses(self) -> tuple[Guess, ...]:
        """See Drafter: two. The kind is `ngram-LENGTH` of the matching run; `b` for the second."""
        tokens = self._tokens
        first: Guess | None = None
        for length in self._lengths:
            if length > len(tokens):
                continue
            places = self._after.get(tuple(tokens[len(tokens) - length :]), ())
            for place in places[-1 : -1 - LATEST : -1]:
                if first is None:
                    first = Guess(tokens[place], f"ngram-{length}", PRIOR_OF_RUN[length])
                elif tokens[place] != first.token_id:
                    return first, Guess(tokens[place], f"ngram-{length}b", PRIOR_OF_SECOND)
        return () if first is None else (first,)

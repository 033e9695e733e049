"""Prompt lookup: what followed the last few tokens when they occurred before.

Saxena 2023, "Prompt Lookup Decoding", and Yang et al. 2023 (LLMA, arXiv:2304.04487): answers
copy from their prompts and from themselves. The best match is the earlier occurrence with the
longest run of equal tokens before it; of equal runs, the latest. An index from short runs to
positions finds occurrences without a scan of the sequence, and comparing backwards tells how long
each match is. The index grows with each token and shrinks when tokens are taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from edge.draft.base import Drafter, DrafterKind, DraftResources, Guess, Rows

MAX_RUN: Final = 10
MAX_KEY: Final = 3  # longest run in the index

# Where online estimates start: how often the token after the best match came again, by the length
# of its run, and how often an alternative was right where the guesses before it were wrong. From
# 223 answers that SmolLM2-135M wrote to itself (docs/concepts/drafting.md), none to a question
# evaluated.
PRIOR_OF_RUN: Final = (0.0, 0.2, 0.52, 0.61, 0.72, 0.73, 0.81, 0.87, 0.86, 0.88, 0.95)
PRIOR_OF_FURTHER: Final = (0.0, 0.15, 0.25, 0.35)  # by run, the last one for all longer
NUM_CHOICES: Final = 4
LATEST: Final = 32  # occurrences of a run in the index that are looked at


class NgramDrafter:
    """See the module's docstring. min_run, max_run: how many last tokens have to match.

    Memory: one small list entry for each position and length of run in the index.
    """

    def __init__(self, *, min_run: int = 1, max_run: int = MAX_RUN) -> None:
        if not 1 <= min_run <= max_run < len(PRIOR_OF_RUN):
            raise ValueError(f"runs of {min_run} to {max_run} tokens are not possible")
        self._keys = range(max(min(max_run, MAX_KEY), min_run), min_run - 1, -1)
        self._max_run = max_run
        self._tokens: list[int] = []
        # Where the token after each occurrence of a run stands, in rising order.
        self._after: dict[tuple[int, ...], list[int]] = {}

    def extend(self, token_ids: Sequence[int], rows: Rows | None = None) -> None:
        """See Drafter; the rows are not looked at."""
        tokens = self._tokens
        for token_id in token_ids:
            # The new token is what follows the runs that ended before it.
            at = len(tokens)
            for length in self._keys:
                if length <= at:
                    self._after.setdefault(tuple(tokens[at - length :]), []).append(at)
            tokens.append(token_id)

    def rollback(self, num_tokens: int) -> None:
        """See Drafter."""
        tokens = self._tokens
        while len(tokens) > num_tokens:
            tokens.pop()
            at = len(tokens)
            for length in self._keys:
                if length <= at:
                    run = tuple(tokens[at - length :])
                    places = self._after[run]
                    places.pop()
                    if not places:
                        del self._after[run]

    def guesses(self) -> tuple[Guess, ...]:
        """See Drafter. The kind is `ngram-RUN`; `b`, `c`, ... after it for alternatives."""
        found: dict[int, Guess] = {}
        for run, place in self._matches():
            token_id = self._tokens[place]
            if token_id in found:
                continue
            if found:
                prior = PRIOR_OF_FURTHER[min(run, len(PRIOR_OF_FURTHER) - 1)]
                kind = f"ngram-{run}{'abcdefgh'[len(found)]}"
            else:
                prior, kind = PRIOR_OF_RUN[run], f"ngram-{run}"
            found[token_id] = Guess(token_id, kind, prior)
            if len(found) == NUM_CHOICES:
                break
        return tuple(found.values())

    def _matches(self) -> Iterator[tuple[int, int]]:
        """(run, place after it) of earlier occurrences, longest run first, latest of equals."""
        size = len(self._tokens)
        for length in self._keys:
            if length > size:
                continue
            places = self._after.get(tuple(self._tokens[size - length :]), ())
            runs = [(self._run(place, length), place) for place in places[-1 : -1 - LATEST : -1]]
            yield from sorted(runs, key=lambda run: -run[0])

    def _run(self, place: int, known: int) -> int:
        """How many tokens before `place` equal the last ones; `known` of them do."""
        tokens, size = self._tokens, len(self._tokens)
        run = known
        while (
            run < self._max_run
            and run < place
            and tokens[place - 1 - run] == tokens[size - 1 - run]
        ):
            run += 1
        return run


def _open(_: DraftResources) -> Callable[[], Drafter]:
    return NgramDrafter


KIND: Final = DrafterKind(name="ngram", open=_open, in_auto=True)

"""What drafting has cost and saved in an answer, so that it may not cost much.

A round with drafts takes longer than one without and brings more tokens, or does not. Guesses that
are overrated lose time on a short link, where a round trip is no dearer than a row. So the time is
booked: what a round took beyond what its tokens would have taken one at a time. While that is more
than a small share of the whole time, no guess is asked for. An answer is thus slower than without
drafts by about that share at most, whatever the guesses are worth: the budget of an experiment with
bounded regret. Ours.
"""

from __future__ import annotations

from typing import Final

# Of the time of an answer, what guessing may lose.
LOSS_SHARE: Final = 0.02
# After so many rounds with drafts one goes without, to see what that takes by now.
RENEW_AFTER: Final = 64
# The least weight of a new round in the mean of those without drafts.
_NEW_WEIGHT: Final = 0.05
# Rounds without drafts before any is made: the first one may have waited for something.
_FEWEST_PLAIN: Final = 4


class DraftLedger:
    """See the module's docstring. Of one answer; times in seconds."""

    def __init__(self) -> None:
        self._plain_s = 0.0
        self._num_plain = 0
        self._since_plain = 0
        self._lost_s = 0.0
        self._total_s = 0.0

    @property
    def allows(self) -> bool:
        """Whether the next round may have drafts."""
        is_known = self._num_plain >= _FEWEST_PLAIN and self._since_plain < RENEW_AFTER
        return is_known and self._lost_s <= LOSS_SHARE * self._total_s

    def answered(
        self, seconds: float, num_tokens: int, *, has_drafts: bool, guess_s: float
    ) -> None:
        """A round took `seconds` from the answer before it, and brought `num_tokens`.

        guess_s: the drafter's part of it, also where it made no guess that was sent.
        """
        self._total_s += seconds
        if has_drafts:
            self._since_plain += 1
            self._lost_s += seconds - num_tokens * self._plain_s
            return
        self._lost_s += guess_s
        plain_s = max(seconds - guess_s, 0.0)
        # The first one does not stay: the second takes its place.
        weight = max(1.0 / max(self._num_plain, 1), _NEW_WEIGHT)
        self._plain_s += weight * (plain_s - self._plain_s)
        self._num_plain += 1
        self._since_plain = 0

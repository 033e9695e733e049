"""Drafting in one generation: which guesses go along with which frame, and what answers teach.

Every guess is weighed when it is made: the chance that it and all before it are right, against
the time it costs and what that time would bring otherwise (`length.pays`). The first guess that is
not worth sending is remembered all the same, because the answer tells whether it was right: so
drafting that was given up is taken up again when the text turns predictable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from edge.draft.acceptance import Acceptance
from edge.draft.drafter import Drafter, Guess, Rows
from edge.draft.length import MAX_DRAFTS, pays
from edge.draft.pace import Pace
from edge.report import StepTrace

# A frame ahead is given up when all of its guesses are less likely than this: the time costs
# nothing then, but energy and uplink do.
MIN_REACH_AHEAD: Final = 0.1
MAX_AHEAD_ROWS: Final = 8
MAX_FRAMES_AHEAD: Final = 4


@dataclass(slots=True, kw_only=True)
class Chain:
    """The guesses of one frame under way.

    reach: the chance that all of them are right, given what the frame stands on. base: the chance
    that what it stands on is right. expected: tokens that the answer is expected to bring, if so.
    next_guess: the one after the last, not sent. guess_s: the drafter's time for all of them.
    """

    base: float = 1.0
    guesses: list[Guess] = field(default_factory=list)
    reach: float = 1.0
    expected: float = 1.0
    next_guess: Guess | None = None
    guess_s: float = 0.0

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(guess.token_id for guess in self.guesses)


class Drafting:
    """See the module's docstring. One generation's; `acceptance` may outlive it.

    limit: most drafts a frame. in_flight: whether to send ahead of outstanding answers.
    """

    def __init__(
        self,
        drafter: Drafter,
        *,
        clock: Callable[[], float],
        acceptance: Acceptance | None = None,
        limit: int = MAX_DRAFTS,
        in_flight: bool = True,
    ) -> None:
        self.acceptance = acceptance or Acceptance()
        self.pace = Pace()
        self.limit = limit
        self._drafter = drafter
        self._clock = clock
        self._in_flight = in_flight
        self._num_tokens = 0
        self._sent: dict[int, Chain] = {}

    def follow(self, first_position: int, token_ids: Sequence[int], rows: Rows | None) -> None:
        """The front computed `rows` for `token_ids` from `first_position` on."""
        if first_position < self._num_tokens:
            self._drafter.rollback(first_position)
        self._drafter.extend(token_ids, rows)
        self._num_tokens = first_position + len(token_ids)

    def extend(self, chain: Chain) -> Guess | None:
        """One more guess for a frame that waits to be sent, if it pays; it joins the chain."""
        guess, reach = self._next(chain)
        if guess is None or len(chain.guesses) >= self.limit or not self.pace.is_known:
            return None
        if not pays(reach, self.pace.times, self.pace.tokens_per_s):
            return None
        return self._add(chain, guess, reach)

    def flies(self) -> bool:
        """Whether frames are sent ahead here: when the link takes longer than the edge."""
        times = self.pace.times
        return self._in_flight and self.pace.is_known and times.rtt_s > times.edge_row_s

    def begin_ahead(self, before: Chain) -> Chain | None:
        """A frame to follow `before`, whose answer is outstanding; None when it is a bad bet.

        If its first guess is right, it saves a round trip; if not, the answer may wait for one row
        of the edge's time.
        """
        guess = before.next_guess
        if guess is None or len(self._sent) > MAX_FRAMES_AHEAD:
            return None
        base = before.base * before.reach * self.acceptance.probability(guess)
        times = self.pace.times
        if base < MIN_REACH_AHEAD or base * times.rtt_s < (1.0 - base) * times.edge_row_s:
            return None
        return Chain(base=base)

    def extend_ahead(self, chain: Chain) -> Guess | None:
        """One more guess for a frame ahead: only the link and the cloud pay for its row."""
        guess, reach = self._next(chain)
        is_full = len(chain.guesses) + 1 >= min(self.limit, MAX_AHEAD_ROWS)
        if guess is None or is_full or chain.base * reach < MIN_REACH_AHEAD:
            return None
        times = self.pace.times
        extra_s = times.cloud_row_s + times.row_bytes / times.up_bytes_per_s
        if reach <= self.pace.tokens_per_s * extra_s:
            return None
        return self._add(chain, guess, reach)

    def sent(self, sequence: int, chain: Chain) -> None:
        """The chain went out with frame `sequence`."""
        self._sent[sequence] = chain

    def expected_tokens(self, sequence: int) -> float:
        """What frame `sequence` was expected to bring; 0 for one without a chain."""
        chain = self._sent.get(sequence)
        return 0.0 if chain is None else chain.expected

    def answered(
        self, step: StepTrace, token_ids: Sequence[int], at_s: float, *, alone: bool
    ) -> None:
        """Learn from one answered decode frame; one that fell (no tokens) teaches nothing."""
        chain = self._sent.pop(step.sequence, None)
        if not token_ids:
            return
        guess_s = 0.0 if chain is None else chain.guess_s
        self.pace.answered(step, at_s, alone=alone, guess_s=guess_s)
        if chain is None:
            return
        guesses = chain.guesses if chain.next_guess is None else [*chain.guesses, chain.next_guess]
        num_right = 0
        for guess, token_id in zip(guesses, token_ids, strict=False):
            if guess.token_id != token_id:
                break
            num_right += 1
        self.acceptance.observe(guesses[: len(token_ids)], num_right)

    def _next(self, chain: Chain) -> tuple[Guess | None, float]:
        """The drafter's next guess, and the chance that the chain is right up to it."""
        started_s = self._clock()
        guess = self._drafter.guess()
        took_s = self._clock() - started_s
        self.pace.guessed(took_s)
        chain.guess_s += took_s
        chain.next_guess = guess
        reach = 0.0 if guess is None else chain.reach * self.acceptance.probability(guess)
        return guess, reach

    def _add(self, chain: Chain, guess: Guess, reach: float) -> Guess:
        chain.guesses.append(guess)
        chain.reach = reach
        chain.expected += reach
        chain.next_guess = None
        return guess

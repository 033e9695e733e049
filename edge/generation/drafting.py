"""Drafting in one generation: which guesses go along with which frame, and what answers teach.

Every guess is weighed when it is made: the chance that it and all before it are right, against
the time it costs and what that time would bring otherwise (`length.pays`). The first guess that is
not worth sending is remembered all the same, because the answer tells whether it was right: so
drafting that was given up is taken up again when the text turns predictable.

On long links frames fly: the first one carries hardly more than the known token, and guesses follow
it in frames of their own while it travels, first choices first, then second choices for the same
places. What is sent so costs the round trip nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from edge.draft.acceptance import Acceptance
from edge.draft.drafter import Drafter, Guess, Rows
from edge.draft.round_estimator import Pace
from edge.generation.report import StepTrace
from optimizer.policy.draft_length import MAX_ROUND_DRAFTS, pays, rides_along

# Nothing is sent ahead that is less likely to count than this: the time costs nothing then, but
# energy and uplink do.
MIN_CHANCE_AHEAD: Final = 0.03
MAX_AHEAD_ROWS: Final = 8
MIN_ROW_S: Final = 1e-6
MAX_IN_FLIGHT: Final = 12  # frames; fewer where the server takes fewer
# Of the frames that a server takes, these are kept free for what is not a draft.
SPARE_FRAMES: Final = 4
MAX_SECOND_CHOICES: Final = 8
SECONDS_A_PLACE: Final = 4
# Where frames do not fly, a guess is asked for while the device could go on: after so many rounds
# in a row without one that paid, it is asked for only now and then.
PATIENT_ROUNDS: Final = 8
ASK_EVERY: Final = 4


class Place(NamedTuple):
    """What was guessed for one place: the first choice, and others in order of their chance."""

    guess: Guess
    others: tuple[Guess, ...] = ()


class SecondChoice(NamedTuple):
    """Another token for a place on the way. chance: that it will be right, and of use."""

    position: int
    guess: Guess
    chance: float


@dataclass(slots=True, kw_only=True)
class Chain:
    """The guesses of one frame under way.

    first_position: of the frame's rows; the first row is no guess of this chain. places: those
    sent. reach: the chance that all of them are right, given what the frame stands on. base: the
    chance that what it stands on is right. expected: tokens that the answer is expected to bring,
    if so. following: the place after the last, whose guess was not sent with it. guess_s: the
    drafter's time for all of them.
    """

    first_position: int
    base: float = 1.0
    places: list[Place] = field(default_factory=list)
    reach: float = 1.0
    expected: float = 1.0
    following: Place | None = None
    guess_s: float = 0.0

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(place.guess.token_id for place in self.places)

    @property
    def next_guess(self) -> Guess | None:
        return None if self.following is None else self.following.guess


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
        limit: int = MAX_ROUND_DRAFTS,
        in_flight: bool = True,
    ) -> None:
        self.acceptance = acceptance or Acceptance()
        self.pace = Pace()
        self.limit = limit
        self._drafter = drafter
        self._clock = clock
        self._in_flight = in_flight
        self._num_tokens = 0
        self._rounds_without = 0  # since a guess was worth its time
        self._sent: dict[int, Chain] = {}
        self.max_in_flight = MAX_IN_FLIGHT
        self._flight_from = 0  # where the frame begins that nothing assumed went before

    def limit_in_flight(self, server_frames: int) -> None:
        """The server takes `server_frames` unanswered frames (`Opened.max_frames_in_flight`)."""
        self.max_in_flight = max(1, min(MAX_IN_FLIGHT, server_frames - SPARE_FRAMES))

    def follow(self, first_position: int, token_ids: Sequence[int], rows: Rows | None) -> None:
        """The front computed `rows` for `token_ids` from `first_position` on."""
        if first_position < self._num_tokens:
            self._drafter.rollback(first_position)
        self._drafter.extend(token_ids, rows)
        self._num_tokens = first_position + len(token_ids)

    def extend(self, chain: Chain) -> Guess | None:
        """One more guess for a frame that waits to be sent, if it pays; it joins the chain."""
        if not chain.places and self._rests():
            return None
        place, reach = self._next(chain)
        if place is None or len(chain.places) >= self.limit or not self.pace.is_known:
            return None
        if self.flies():
            is_worth_it = rides_along(reach, self.pace.times)
        else:
            is_worth_it = pays(reach, self.pace.times, self.pace.tokens_per_s)
        if not is_worth_it:
            return None
        self._rounds_without = 0
        return self._add(chain, place, reach)

    def flies(self) -> bool:
        """Whether frames are sent ahead here: when an answer takes longer than a row does."""
        times = self.pace.times
        return self._in_flight and self.pace.is_known and times.rtt_s > times.ahead_row_s

    def begin_ahead(self, before: Chain) -> Chain | None:
        """A frame to follow `before`, whose answer is outstanding; None when it is a bad bet."""
        if before.next_guess is None or len(self._sent) >= self.max_in_flight:
            return None
        base = before.base * before.reach * self.acceptance.probability(before.next_guess)
        first_position = before.first_position + len(before.places) + 1
        is_in_time = first_position - self._flight_from <= self._rows_in_time()
        if not is_in_time or not self._is_worth_a_frame(base):
            return None
        return Chain(first_position=first_position, base=base)

    def extend_ahead(self, chain: Chain) -> Guess | None:
        """One more guess for a frame ahead, if it should not rather go in a frame of its own."""
        place, reach = self._next(chain)
        is_full = len(chain.places) + 1 >= min(self.limit, MAX_AHEAD_ROWS)
        if place is None or is_full or chain.base * reach < MIN_CHANCE_AHEAD:
            return None
        return self._add(chain, place, reach) if rides_along(reach, self.pace.times) else None

    def second_choices(self, flight: Sequence[Chain]) -> list[SecondChoice]:
        """Other tokens for places on the way that are worth a frame of their own, last place first.

        flight: the chains under way, each standing on the one before. That many as the edge can
        compute until the first answer is expected; the likeliest, if that is not all.
        """
        found: list[SecondChoice] = []
        last = flight[-1]
        for chain in flight:
            # A guess that was not sent, not even as the next frame's first row, is no first choice.
            sent = [*chain.places, *([chain.following] if chain is not last else [])]
            way = chain.base
            for position, place in enumerate(sent, start=chain.first_position + 1):
                if place is None:
                    continue
                right = self.acceptance.probability(place.guess)
                wrong = way * (1.0 - right)
                for other in place.others:
                    chance = self.acceptance.probability(other)
                    if self._is_worth_a_frame(wrong * chance):
                        found.append(SecondChoice(position, other, wrong * chance))
                    wrong *= 1.0 - chance
                way *= right
        rows_sent = sum(len(chain.places) + 1 for chain in flight) - 1
        room = min(
            self._rows_in_time() - rows_sent,
            MAX_SECOND_CHOICES,
            self.max_in_flight - len(self._sent),
        )
        likeliest = sorted(found, key=lambda choice: -choice.chance)[: max(room, 0)]
        return sorted(likeliest, key=lambda choice: (-choice.position, -choice.chance))

    def sent(self, sequence: int, chain: Chain) -> None:
        """The chain went out with frame `sequence`."""
        self._sent[sequence] = chain
        if chain.base == 1.0:
            self._flight_from = chain.first_position

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
        places = chain.places if chain.following is None else [*chain.places, chain.following]
        num_right = 0
        for place, token_id in zip(places, token_ids, strict=False):
            if place.guess.token_id != token_id:
                for other in place.others:
                    self.acceptance.observe_second(other, other.token_id == token_id)
                    if other.token_id == token_id:
                        break
                break
            num_right += 1
        guesses = [place.guess for place in places]
        self.acceptance.observe(guesses[: len(token_ids)], num_right)

    def _rests(self) -> bool:
        """Whether this round does without a guess, because none has paid for long."""
        self._rounds_without += 1
        late = self._rounds_without - PATIENT_ROUNDS
        return late > 0 and late % ASK_EVERY != 0 and not self.flies()

    def _is_worth_a_frame(self, chance: float) -> bool:
        """If it is right it saves a round trip; if not, the answer may wait for a row."""
        times = self.pace.times
        is_likely = chance >= MIN_CHANCE_AHEAD
        return is_likely and chance * times.rtt_s > (1.0 - chance) * times.ahead_row_s

    def _rows_in_time(self) -> int:
        """How many rows can be sent ahead until the first answer is expected."""
        times = self.pace.times
        return int(times.rtt_s / max(times.ahead_row_s, MIN_ROW_S))

    def _next(self, chain: Chain) -> tuple[Place | None, float]:
        """The drafter's next guess, and the chance that the chain is right up to it."""
        started_s = self._clock()
        guesses = self._drafter.guesses()
        took_s = self._clock() - started_s
        self.pace.guessed(took_s)
        chain.guess_s += took_s
        if not guesses:
            chain.following = None
            return None, 0.0
        others = tuple(
            Guess(guess.token_id, f"{guess.kind}-2nd", guess.prior)
            for guess in guesses[1 : 1 + SECONDS_A_PLACE]
        )
        chain.following = Place(guesses[0], others)
        return chain.following, chain.reach * self.acceptance.probability(guesses[0])

    def _add(self, chain: Chain, place: Place, reach: float) -> Guess:
        chain.places.append(place)
        chain.reach = reach
        chain.expected += reach
        chain.following = None
        return place.guess

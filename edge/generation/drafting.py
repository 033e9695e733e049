"""Drafting in one generation: which guesses go along with which frame, and what answers teach.

Each guess is weighed when it is made. Its gain is the chance that it and all guesses before it are
right; its cost is the time it takes and what that time would bring otherwise
(`optimizer.policy.draft_length.pays`). The first guess that is not worth sending is remembered all
the same, because the answer tells whether it was right. So drafting that has stopped starts again
when the text turns predictable.

On long links frames are sent ahead: the first one carries little more than the known token, and
guesses follow it in frames of their own while it travels. The drafter's first guesses go first,
then alternatives to them. What is sent this way adds nothing to the round trip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from edge.draft.acceptance import Acceptance
from edge.draft.base import Drafter, Guess, HearsCloud, Rows
from edge.draft.round_estimator import RoundEstimator
from edge.generation.draft_run import Alternative, DraftRun, DraftSlot
from edge.generation.step_observer import AnsweredStep
from optimizer.policy.draft_ledger import DraftLedger
from optimizer.policy.draft_length import MAX_ROUND_DRAFTS, pays, rides_along
from optimizer.policy.frames_ahead import (
    MAX_IN_FLIGHT,
    MIN_CHANCE_AHEAD,
    least_chance,
    rows_in_time,
)
from protos.messages import Drafts

MAX_AHEAD_ROWS: Final = 8
# Of the frames that a server takes, these are kept free for frames that are no drafts.
SPARE_FRAMES: Final = 4
MAX_ALTERNATIVES: Final = 8
ALTERNATIVES_PER_SLOT: Final = 4
# Where no frames are sent ahead, asking for a guess takes time from the device. After eight
# rounds in a row without a guess that paid, one is asked for only in every fourth.
PATIENT_ROUNDS: Final = 8
ASK_EVERY: Final = 4


class DraftSelector:
    """See the module's docstring. One generation's, and a StepWatcher.

    clock: seconds. acceptance: may outlive the generation. limit: the most drafts a frame.
    in_flight: whether to send ahead of outstanding answers. vocab_size: of the model that is
    drafted for (None: unknown); a drafter's guess beyond it is no guess.
    """

    def __init__(
        self,
        drafter: Drafter,
        *,
        clock: Callable[[], float],
        acceptance: Acceptance | None = None,
        limit: int = MAX_ROUND_DRAFTS,
        in_flight: bool = True,
        vocab_size: int | None = None,
    ) -> None:
        self.acceptance = acceptance or Acceptance()
        self.estimator = RoundEstimator()
        self.limit = limit
        self._drafter = drafter
        self._clock = clock
        self._in_flight = in_flight
        self._vocab_size = vocab_size
        self._num_tokens = 0
        self._rounds_without = 0  # since a guess was worth its time
        self._sent: dict[int, DraftRun] = {}
        self.max_in_flight = MAX_IN_FLIGHT
        self.flight: list[DraftRun] = []  # what is under way, each continuing the one before
        self._has_news = False  # the cloud guessed something since a guess was asked for
        self._has_room = False  # the flight's first frame was right, since a frame was asked for
        self._ledger = DraftLedger()
        self._answered_at_s: float | None = None

    def limit_in_flight(self, server_frames: int) -> None:
        """The server takes `server_frames` unanswered frames (`Opened.max_frames_in_flight`)."""
        self.max_in_flight = max(1, min(MAX_IN_FLIGHT, server_frames - SPARE_FRAMES))

    def follow(self, first_position: int, token_ids: Sequence[int], rows: Rows | None) -> None:
        """The front computed `rows` [T, D] for `token_ids` [T] from `first_position` on."""
        if first_position < self._num_tokens:
            self._drafter.rollback(first_position)
        self._drafter.extend(token_ids, rows)
        self._num_tokens = first_position + len(token_ids)

    def hear(self, drafts: Drafts) -> None:
        """The cloud guesses this. A drafter that does not listen loses nothing."""
        if isinstance(self._drafter, HearsCloud):
            self._drafter.hear(drafts)
            self._has_news = True

    @property
    def has_news(self) -> bool:
        """Whether the cloud guessed something that no guess has taken into account."""
        return self._has_news

    @property
    def may_go_on(self) -> bool:
        """Whether more frames may be worth it than when the last one was asked for."""
        return self._has_news or self._has_room

    def look_again(self, run: DraftRun) -> None:
        """Guess anew what follows `run`, whose last row is the last that the drafter has seen."""
        self._next(run)

    def extend(self, run: DraftRun) -> Guess | None:
        """One more guess for a frame that waits to be sent, if it pays; it joins the run."""
        if not run.slots and (self._backs_off() or self._costs_too_much()):
            return None
        slot, reach = self._next(run)
        estimator = self.estimator
        if slot is None or len(run.slots) >= self.limit or not estimator.is_known:
            return None
        if self.sends_ahead():
            is_worth_it = rides_along(reach, estimator.times)
        else:
            is_worth_it = pays(reach, estimator.times, estimator.tokens_per_s)
        if not is_worth_it:
            return None
        self._rounds_without = 0
        return self._add(run, slot, reach)

    def sends_ahead(self) -> bool:
        """Whether frames are sent ahead here: when an answer takes longer than a row does."""
        return self._in_flight and self.estimator.is_known and self._rows_in_time() > 0

    def begin_ahead(self, before: DraftRun) -> DraftRun | None:
        """A frame to follow `before`, whose answer is outstanding; None when it is a bad bet."""
        self._has_room = False
        if before.next_guess is None or len(self._sent) >= self.max_in_flight:
            return None
        base = before.base * before.reach * self.acceptance.probability(before.next_guess)
        first_position = before.first_position + len(before.slots) + 1
        is_in_time = self._rows_ahead() < self._rows_in_time()
        if not is_in_time or base < self._least_chance():
            return None
        return DraftRun(first_position=first_position, place="next", base=base)

    def extend_ahead(self, run: DraftRun) -> Guess | None:
        """One more guess for a frame ahead, unless it should rather go in a frame of its own."""
        slot, reach = self._next(run)
        is_full = len(run.slots) + 1 >= min(self.limit, MAX_AHEAD_ROWS)
        if slot is None or is_full or run.base * reach < MIN_CHANCE_AHEAD:
            return None
        return self._add(run, slot, reach) if rides_along(reach, self.estimator.times) else None

    def alternatives(self) -> list[Alternative]:
        """Other tokens for positions under way that are worth a frame, the last position first.

        As many as the edge can compute until the first answer is expected; if there are more, the
        likeliest.
        """
        found: list[Alternative] = []
        last, least = self.flight[-1], self._least_chance()
        for run in self.flight:
            # An alternative replaces a guess that was sent, if only as the next frame's first row.
            sent = [*run.slots, *([run.following] if run is not last else [])]
            reached = run.base
            for position, slot in enumerate(sent, start=run.first_position + 1):
                if slot is None:
                    continue
                right = self.acceptance.probability(slot.guess)
                wrong = reached * (1.0 - right)
                for other in slot.alternatives:
                    chance = self.acceptance.probability(other)
                    if wrong * chance >= least:
                        found.append(Alternative(position, other, wrong * chance))
                    wrong *= 1.0 - chance
                reached *= right
        room = min(
            self._rows_in_time() - self._rows_ahead(),
            MAX_ALTERNATIVES,
            self.max_in_flight - len(self._sent),
        )
        likeliest = sorted(found, key=lambda choice: -choice.chance)[: max(room, 0)]
        return sorted(likeliest, key=lambda choice: (-choice.position, -choice.chance))

    def sent(self, sequence: int, run: DraftRun) -> None:
        """The run went out with frame `sequence`."""
        self._sent[sequence] = run
        if run.place == "first":
            self.flight = []
        if run.place != "alternative":
            self.flight.append(run)

    def answered(self, step: AnsweredStep) -> str:
        """See StepWatcher. A frame that was void (no tokens) teaches nothing; decides nothing."""
        if step.is_prefill:
            return ""
        run = self._sent.pop(step.trace.sequence, None)
        token_ids = step.token_ids
        if not token_ids:
            return ""
        guess_s = 0.0 if run is None else run.guess_s
        self._book(step, run)
        self.estimator.answered(step.trace, step.at_s, alone=step.alone, guess_s=guess_s)
        if run is not None:
            self._learn(run, token_ids)
            self._confirm(run, token_ids)
        return ""

    def _confirm(self, run: DraftRun, token_ids: Sequence[int]) -> None:
        """Where the next frame begins with what the answer ended with, all before it is known: the
        chances behind it count from there, and the flight may go on."""
        if len(self.flight) < 2 or run is not self.flight[0] or run.next_guess is None:
            return
        if len(token_ids) <= len(run.slots) or token_ids[-1] != run.next_guess.token_id:
            return
        del self.flight[0]
        known = self.flight[0].base
        for later in self.flight:
            later.base /= known
        self._has_room = True

    def _learn(self, run: DraftRun, token_ids: Sequence[int]) -> None:
        """Compare the run's guesses with the tokens that came."""
        slots = run.slots if run.following is None else [*run.slots, run.following]
        num_right = 0
        for slot, token_id in zip(slots, token_ids, strict=False):
            if slot.guess.token_id != token_id:
                for other in slot.alternatives:
                    self.acceptance.observe_alternative(other, other.token_id == token_id)
                    if other.token_id == token_id:
                        break
                break
            num_right += 1
        guesses = [slot.guess for slot in slots]
        self.acceptance.observe(guesses[: len(token_ids)], num_right)

    def _backs_off(self) -> bool:
        """Whether this round asks for no guess, because none has paid for long."""
        self._rounds_without += 1
        late = self._rounds_without - PATIENT_ROUNDS
        return late > 0 and late % ASK_EVERY != 0 and not self.sends_ahead()

    def _costs_too_much(self) -> bool:
        """Whether guesses have lost too much time; what is sent ahead takes none."""
        return not self.sends_ahead() and self.estimator.is_known and not self._ledger.allows

    def _book(self, step: AnsweredStep, run: DraftRun | None) -> None:
        """What the round before this answer took."""
        before_s, self._answered_at_s = self._answered_at_s, step.at_s
        if before_s is None or self.sends_ahead():
            return
        self._ledger.answered(
            step.at_s - before_s,
            len(step.token_ids),
            has_drafts=run is not None and bool(run.slots),
            guess_s=0.0 if run is None else run.guess_s,
        )

    def _least_chance(self) -> float:
        """How likely to count a guess has to be for a frame of its own."""
        times = self.estimator.times
        return float(least_chance(times.rtt_s, times.ahead_row_s))

    def _rows_in_time(self) -> int:
        """How many rows can be sent ahead until the first answer is expected."""
        times = self.estimator.times
        return int(rows_in_time(times.rtt_s, times.ahead_row_s))

    def _rows_ahead(self) -> int:
        """Rows that went behind the flight's first frame."""
        return sum(len(run.slots) + 1 for run in self.flight[1:])

    def _next(self, run: DraftRun) -> tuple[DraftSlot | None, float]:
        """The drafter's next guess, and the chance that the run is right up to it."""
        self._has_news = False
        started_s = self._clock()
        guesses = self._known(self._drafter.guesses())
        took_s = self._clock() - started_s
        self.estimator.guessed(took_s)
        run.guess_s += took_s
        if not guesses:
            run.following = None
            return None, 0.0
        alternatives = tuple(
            Guess(guess.token_id, f"{guess.kind}-2nd", guess.prior)
            for guess in guesses[1 : 1 + ALTERNATIVES_PER_SLOT]
        )
        run.following = DraftSlot(guesses[0], alternatives)
        return run.following, run.reach * self.acceptance.probability(guesses[0])

    def _known(self, guesses: tuple[Guess, ...]) -> tuple[Guess, ...]:
        """The guesses that the model has: a drafter of another vocabulary may name others."""
        vocab_size = self._vocab_size
        if vocab_size is None or all(0 <= guess.token_id < vocab_size for guess in guesses):
            return guesses
        return tuple(guess for guess in guesses if 0 <= guess.token_id < vocab_size)

    def _add(self, run: DraftRun, slot: DraftSlot, reach: float) -> Guess:
        run.slots.append(slot)
        run.reach = reach
        run.expected += reach
        run.following = None
        return slot.guess

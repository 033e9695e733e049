"""Guesses beyond the answers of a step, for all of its sessions together, once these have left.

The model thread delivers a step's answers before it asks a `StepDrafter`. So a guess never delays
an answer that is ready. A drafter with short passes is asked at once and may delay the next step. A
drafter whose pass takes a step is asked when no frame waits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from typing import Protocol

from optimizer.policy.cloud_drafts import MOST_BUSY, MOST_GUESSED_TOGETHER, BusyShare
from protos.messages import Drafts

logger = logging.getLogger(__name__)


class DraftState(Protocol):
    """What a `StepDrafter` keeps of one session."""

    @property
    def is_due(self) -> bool:
        """Whether rows of the session have run since its drafter last saw it."""
        ...

    def close(self) -> None:
        """The drafter keeps nothing of the session from now on; doing it again does nothing."""
        ...


class StepDrafter(Protocol):
    """Guesses for the sessions of one step. The model thread alone calls it.

    takes_steps: a pass takes about as long as a step of the model, so it must not be in the way of
    one.
    """

    @property
    def takes_steps(self) -> bool: ...

    def passes(
        self, states: Sequence[DraftState], *, step_s: float
    ) -> Generator[Sequence[Drafts | None]]:
        """Take in what has run, and guess: after every pass all guesses so far, one answer a state,
        None where there is nothing new. Whoever asks may stop between two passes.

        step_s: how long the step of the model took. It must not raise for one session's sake.
        """
        ...


class Drafted(Protocol):
    """A session that a step has answered; `cloud.engine.loop_commands.ActiveSession` is one."""

    @property
    def draft_state(self) -> DraftState | None:
        """What its drafter keeps of it."""
        ...

    def deliver(self, drafts: Drafts) -> None:
        """Send it guesses."""
        ...


class StepDrafting:
    """Drafts for the sessions of one model thread.

    drafter: None: nobody guesses. work_waits: whether frames could run now. Where a pass takes
    about as long as a step, sessions are drafted for while no frame waits, the last ones first, and
    not on a busy server; else after their step.
    """

    def __init__(
        self,
        drafter: StepDrafter | None,
        work_waits: Callable[[], bool],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._drafter = drafter
        self._work_waits = work_waits
        self._clock = clock
        self._busy = BusyShare()
        self._due: dict[Drafted, None] = {}  # answered, and not drafted for since
        self._step_s = 0.0

    def after_step(self, finished: Sequence[Drafted], *, step_s: float) -> None:
        """A step has answered these sessions. No error of a drafter leaves this."""
        if self._drafter is None:
            return
        self._busy.stepped(step_s, self._clock())
        self._step_s = step_s
        if not self._drafter.takes_steps:
            self._draft(self._drafter, _due(finished))
            return
        self._due.update((one, None) for one, _ in _due(finished))

    def when_idle(self) -> None:
        """Guess for the sessions that are due, until frames wait. No error leaves this."""
        if self._drafter is None:
            return
        while self._due and not self._work_waits():
            if self._busy.share > MOST_BUSY:
                self._due.clear()
                return
            due = _due(self._due)
            self._due = {one: None for one, _ in due[:-MOST_GUESSED_TOGETHER]}
            self._draft(self._drafter, due[-MOST_GUESSED_TOGETHER:])

    def _draft(self, drafter: StepDrafter, due: Sequence[tuple[Drafted, DraftState]]) -> None:
        if not due:
            return
        states = [state for _, state in due]
        try:
            with closing(drafter.passes(states, step_s=self._step_s)) as passes:
                for found in passes:
                    for (one, _), drafts in zip(due, found, strict=True):
                        if drafts is not None:
                            one.deliver(drafts)
                    if drafter.takes_steps and self._work_waits():
                        self._due.update((one, None) for one, _ in due)
                        break
        except Exception:  # guesses promise nothing: the sessions go on without
            logger.exception("drafting for %d sessions failed; they get no more guesses", len(due))
            for state in states:  # what it kept of them may be half changed
                state.close()


def _due(sessions: Iterable[Drafted]) -> list[tuple[Drafted, DraftState]]:
    return [(one, state) for one in sessions if (state := one.draft_state) and state.is_due]

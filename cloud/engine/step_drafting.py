"""Guesses beyond the answers of a step, for all of its sessions together, once these have left.

The model thread calls a `StepDrafter` after it has delivered a step's answers. So a guess never
delays an answer that would otherwise leave. What it delays is the next step, if one waits.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

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
    """Guesses for the sessions of one step. The model thread alone calls it."""

    def draft(self, states: Sequence[DraftState], *, step_s: float) -> list[Drafts | None]:
        """Take in what has run, and guess: one answer a state, None where it guesses nothing.

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


def draft_after_step(drafter: StepDrafter, finished: Sequence[Drafted], *, step_s: float) -> None:
    """Guess for the sessions that a step has answered. No error of a drafter leaves this."""
    due = [(one, state) for one in finished if (state := one.draft_state) and state.is_due]
    if not due:
        return
    try:
        found = drafter.draft([state for _, state in due], step_s=step_s)
    except Exception:  # guesses promise nothing: the sessions go on without
        logger.exception("drafting for %d sessions failed; they get no more guesses", len(due))
        for _, state in due:  # what it kept of them may be half changed
            state.close()
        return
    for (one, _), drafts in zip(due, found, strict=True):
        if drafts is not None:
            one.deliver(drafts)

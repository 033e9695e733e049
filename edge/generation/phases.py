"""The phases of a session and the table of events that lead from one to the next.

    IDLE --open--> OPENING --opened--> PREFILLING --sent last chunk--> WAITING
    WAITING --tokens--> READY --sent step--> WAITING
    WAITING --sent ahead--> WAITING --tokens as guessed--> WAITING
    every phase but IDLE and FINISHED --lost--> BROKEN --open--> OPENING
    OPENING --sent chunk or last chunk--> OPENING (behind the Open, before its answer)
    OPENING --resumed waiting--> WAITING, --resumed ready--> READY (after the prompt was sent)
    every phase --finish--> FINISHED

`TRANSITIONS` holds everything that is allowed. `next_phase` is the only reader.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from edge.errors import SessionError


class Phase(Enum):
    """Where a session stands."""

    IDLE = auto()
    OPENING = auto()
    PREFILLING = auto()
    WAITING = auto()
    READY = auto()
    BROKEN = auto()
    FINISHED = auto()


class Event(Enum):
    """What can happen to a session. A reopened stream resumes in the phase that was lost."""

    OPEN = auto()
    OPENED = auto()
    RESUMED_WAITING = auto()
    RESUMED_READY = auto()
    SENT_CHUNK = auto()
    SENT_LAST = auto()
    SENT_AHEAD = auto()
    ACKNOWLEDGED = auto()
    TOKENS = auto()
    TOKENS_AS_GUESSED = auto()
    LOST = auto()
    FINISH = auto()


TRANSITIONS: Final[dict[tuple[Phase, Event], Phase]] = {
    (Phase.IDLE, Event.OPEN): Phase.OPENING,
    (Phase.OPENING, Event.OPENED): Phase.PREFILLING,
    (Phase.OPENING, Event.SENT_CHUNK): Phase.OPENING,
    (Phase.OPENING, Event.SENT_LAST): Phase.OPENING,
    (Phase.OPENING, Event.RESUMED_WAITING): Phase.WAITING,
    (Phase.OPENING, Event.RESUMED_READY): Phase.READY,
    (Phase.PREFILLING, Event.SENT_CHUNK): Phase.PREFILLING,
    (Phase.PREFILLING, Event.SENT_LAST): Phase.WAITING,
    (Phase.PREFILLING, Event.ACKNOWLEDGED): Phase.PREFILLING,
    (Phase.WAITING, Event.ACKNOWLEDGED): Phase.WAITING,
    (Phase.WAITING, Event.TOKENS): Phase.READY,
    (Phase.WAITING, Event.SENT_AHEAD): Phase.WAITING,
    (Phase.WAITING, Event.TOKENS_AS_GUESSED): Phase.WAITING,
    (Phase.READY, Event.ACKNOWLEDGED): Phase.READY,
    (Phase.READY, Event.SENT_LAST): Phase.WAITING,
    (Phase.BROKEN, Event.OPEN): Phase.OPENING,
    (Phase.OPENING, Event.LOST): Phase.BROKEN,
    (Phase.PREFILLING, Event.LOST): Phase.BROKEN,
    (Phase.WAITING, Event.LOST): Phase.BROKEN,
    (Phase.READY, Event.LOST): Phase.BROKEN,
    (Phase.BROKEN, Event.LOST): Phase.BROKEN,
    **{(phase, Event.FINISH): Phase.FINISHED for phase in Phase},
}

# The event that an opened stream brings, by the phase in which the session goes on: the one in
# which the last stream was lost, or to which frames sent behind the Open have led.
RESUMING: Final[dict[Phase, Event]] = {
    Phase.PREFILLING: Event.OPENED,
    Phase.WAITING: Event.RESUMED_WAITING,
    Phase.READY: Event.RESUMED_READY,
}


def next_phase(phase: Phase, event: Event) -> Phase:
    """The phase after `event`; SessionError when the table does not allow it in `phase`."""
    following = TRANSITIONS.get((phase, event))
    if following is None:
        raise SessionError(f"{event.name} is not possible while {phase.name}")
    return following

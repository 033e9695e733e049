"""How far a cloud's drafter guesses: until a further guess costs more than it is likely to save.

A pass of the drafter takes time of the server. While nothing waits, that time is free: the answers
have left. On a busy server it is taken from the other sessions' steps. A guess that comes true
saves its session's part of a step; one that does not costs a row of a step besides. So a guess pays
where

    reach * step_s  >  busy * (pass_s + row_s),

each side for all sessions of a step together. reach is the chance that the guess and all before it
are right; busy is the share of time in which the server computes. Ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

# Guesses less likely to count than this are left out on an idle server too: the edge would not
# send them, and they would take bytes of the downlink.
MIN_REACH: Final = 0.02
# What a further row adds to a step, as a share of it, where a step has few rows.
ROW_SHARE: Final = 0.1
_MEMORY: Final = 0.9

# Where a pass takes a step of the model, other rules decide (docs/results/drafting.md has what they
# were measured on). The least chance that the guesses so far are all right:
LEAST_REACH_OF_A_STEP: Final = 0.1
# The least pause between an answer and the next frame, in passes. In a shorter one a guess saves
# less time than its row takes.
LEAST_PAUSE_IN_PASSES: Final = 2.5
# The largest share of time that steps take. On a busier server passes delay other sessions' frames.
MOST_BUSY: Final = 0.6
# The most sessions of one pass, so that it takes about as long as a step of a single row.
MOST_GUESSED_TOGETHER: Final = 4
_BUSY_MEMORY_S: Final = 1.0


@dataclass(slots=True)
class DraftLoad:
    """What passes cost and how busy the server is. Times in seconds.

    pass_s: mean of a pass for all sessions of a step. busy: share of the time that steps take, 0 to
    1, as a fading mean over steps.
    """

    pass_s: float = 0.0
    busy: float = 0.0
    _ended_s: float | None = None

    def stepped(self, step_s: float, at_s: float) -> None:
        """A step of the model has taken `step_s` and ended at `at_s`, on any clock."""
        if self._ended_s is not None:
            share = min(step_s / max(at_s - self._ended_s, step_s, 1e-9), 1.0)
            self.busy = _MEMORY * self.busy + (1.0 - _MEMORY) * share
        self._ended_s = at_s

    def passed(self, seconds: float) -> None:
        """One pass took so long."""
        old = self.pass_s or seconds
        self.pass_s = _MEMORY * old + (1.0 - _MEMORY) * seconds

    def pays(self, reach: float, step_s: float) -> bool:
        """Whether one more guess is worth its time for sessions of a step of `step_s`."""
        if reach < MIN_REACH:
            return False
        return reach * step_s > self.busy * (self.pass_s + ROW_SHARE * step_s)


@dataclass(slots=True)
class BusyShare:
    """share: of the time that steps of the model take, 0 to 1, fading over a second."""

    share: float = 0.0
    _ended_s: float | None = None

    def stepped(self, step_s: float, at_s: float) -> None:
        """A step of the model has taken `step_s` and ended at `at_s`, on any clock."""
        if self._ended_s is not None and step_s > 0:
            elapsed_s = max(at_s - self._ended_s, step_s)
            kept = math.exp(-elapsed_s / _BUSY_MEMORY_S)
            self.share = kept * self.share + (1.0 - kept) * step_s / elapsed_s
        self._ended_s = at_s

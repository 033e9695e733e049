"""Which session may start now, which one waits and which one is refused: a pure decision.

The server asks at every Open and whenever a session has ended. The simulator asks the same rule
about its simulated servers. Nothing here needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple


class ServerLoad(NamedTuple):
    """The load of one server: sessions running, sessions waiting in the queue, and KV blocks."""

    sessions: int
    waiting: int
    free_blocks: int
    total_blocks: int


class Verdict(NamedTuple):
    """`admit` now, `wait` in the queue, `busy` (try again after `retry_after_s`), or `never`."""

    kind: Literal["admit", "wait", "busy", "never"]
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionRule:
    """First come, first served: no session overtakes the queue, so a large one cannot starve.

    max_sessions: most sessions at once. max_waiting: most sessions in the queue; with 0 nobody
    waits. retry_after_s: what the first refused session is told. The longer the queue, the later
    a refused session is told to come back.
    """

    max_sessions: int
    max_waiting: int = 0
    retry_after_s: float = 1.0

    def decide(self, load: ServerLoad, num_blocks: int, *, num_ahead: int | None = None) -> Verdict:
        """What a session of `num_blocks` KV blocks gets.

        num_ahead: sessions in the queue that it must not overtake, where some wait for other KV
        memory than it needs (None: all of them).
        """
        if num_blocks > load.total_blocks:
            return Verdict("never")
        ahead = load.waiting if num_ahead is None else num_ahead
        if ahead == 0 and self.fits(load, num_blocks):
            return Verdict("admit")
        if load.waiting < self.max_waiting:
            return Verdict("wait")
        share = load.waiting / self.max_sessions
        return Verdict("busy", self.retry_after_s * (1.0 + share))

    def fits(self, load: ServerLoad, num_blocks: int) -> bool:
        """Whether the first session of the queue has room now."""
        return load.sessions < self.max_sessions and num_blocks <= load.free_blocks

    def after_waiting(self, num_waiting: int) -> Verdict:
        """What a session hears that waited too long; `num_waiting` others still wait."""
        return Verdict("busy", self.retry_after_s * (1 + num_waiting))

"""Who may start now, who waits and who is sent away: a pure decision, without torch.

The server asks it at every Open and whenever a session has ended; the simulator runs the same
rule on simulated load (`optimizer.simulate.ports.AdmissionRule`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol


class Load(Protocol):
    """What is looked at: sessions running, sessions waiting in line, and KV blocks."""

    @property
    def sessions(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def free_blocks(self) -> int: ...
    @property
    def total_blocks(self) -> int: ...


class ServerLoad(NamedTuple):
    """The load of one server."""

    sessions: int
    waiting: int
    free_blocks: int
    total_blocks: int


class Verdict(NamedTuple):
    """`admit` now, `wait` in line, `busy` (come back after `retry_after_s`), or `never`."""

    kind: Literal["admit", "wait", "busy", "never"]
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionRule:
    """First come, first served: nobody passes the line, so a large session cannot starve.

    max_sessions: at once. max_waiting: length of the line; 0: nobody waits. retry_after_s: what
    the first one sent away is told; later ones are told to come back later, in proportion to
    the line they would join.
    """

    max_sessions: int
    max_waiting: int = 0
    retry_after_s: float = 1.0

    def decide(self, load: Load, num_blocks: int) -> Verdict:
        """What a session of `num_blocks` KV blocks gets."""
        if num_blocks > load.total_blocks:
            return Verdict("never")
        if load.waiting == 0 and self.fits(load, num_blocks):
            return Verdict("admit")
        if load.waiting < self.max_waiting:
            return Verdict("wait")
        share = load.waiting / self.max_sessions
        return Verdict("busy", self.retry_after_s * (1.0 + share))

    def fits(self, load: Load, num_blocks: int) -> bool:
        """Whether there is room now, for the first in line."""
        return load.sessions < self.max_sessions and num_blocks <= load.free_blocks

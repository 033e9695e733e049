"""How many sessions one server grants."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """How many sessions one server grants.

    max_sessions: at once. max_waiting: in the queue for a place. max_wait_s: how long each of
    them may wait.
    """

    max_sessions: int
    max_waiting: int = 16
    max_wait_s: float = 2.0

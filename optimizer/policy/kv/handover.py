"""`handover`: nothing is forgotten; the split moves towards the cloud when the cache is full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """Keep everything: fewer layers on the device hold more tokens, and none need no cache."""

    name: str = "handover"
    summary: str = "handover (the split moves towards the cloud)"
    evicts: bool = False
    hands_over: bool = True
    in_place: bool = False
    needs_scores: bool = False
    decay: float = 1.0

    def kept(self, num_tokens: int, capacity: int, scores: Sequence[float] = ()) -> Sequence[int]:
        """See KvPolicy."""
        return range(num_tokens)

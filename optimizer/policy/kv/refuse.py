"""`refuse`: a sequence never outgrows its cache; a request that would is an input error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """Keep everything, and end where the cache ends."""

    name: str = "refuse"
    summary: str = "refuse"
    evicts: bool = False
    hands_over: bool = False
    in_place: bool = False
    needs_scores: bool = False
    decay: float = 1.0

    def kept(self, num_tokens: int, capacity: int, scores: Sequence[float] = ()) -> Sequence[int]:
        """See KvPolicy; the caller refuses before it comes to that."""
        return range(num_tokens)

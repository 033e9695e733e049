"""`handover`: nothing is forgotten; the server takes all layers over when the cache is full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """Keep everything: the split moves to 0, where the device needs no cache."""

    name: str = "handover"
    summary: str = "handover (the server takes over all layers)"
    evicts: bool = False
    hands_over: bool = True

    def kept(self, num_tokens: int, capacity: int) -> Sequence[int]:
        """See KvPolicy."""
        return range(num_tokens)

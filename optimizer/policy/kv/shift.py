"""`shift`: forget the middle, keep the first tokens and the most recent ones.

Keeping the first tokens (attention sinks) and the last ones is Xiao et al.'s idea
(arXiv:2309.17453). Half of the cache is kept, so in the long run each generated token costs about
one prefilled token. The shares are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """Keep 1/`kept_share` of the cache: 1/`sink_share` of that, at most `max_sink_tokens`, from
    the beginning; the rest from the end."""

    name: str = "shift"
    summary: str = "shift (forget the middle, go on)"
    evicts: bool = True
    hands_over: bool = False
    in_place: bool = False
    needs_scores: bool = False
    decay: float = 1.0
    max_sink_tokens: int = 64
    sink_share: int = 8
    kept_share: int = 2

    def kept(self, num_tokens: int, capacity: int, scores: Sequence[float] = ()) -> Sequence[int]:
        """See KvPolicy."""
        if num_tokens < capacity:
            return range(num_tokens)
        num_kept = max(capacity // self.kept_share, 1)
        num_sink = min(self.max_sink_tokens, num_kept // self.sink_share)
        return [*range(num_sink), *range(num_tokens - (num_kept - num_sink), num_tokens)]

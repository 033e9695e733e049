"""`recent`: the first tokens and the newest stay in the cache; nothing is computed again.

Attention sinks and the newest tokens are Xiao et al.'s idea (arXiv:2309.17453). There, positions
are places in the cache; here each token keeps the position that it was computed at, so nothing has
to be rotated again. The shares are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SINK_TOKENS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent:
    """Keep `sink_tokens` from the beginning and the newest; 1/`room_share` of the cache gets free.

    A larger share means fewer rounds, and fewer tokens that stay.
    """

    name: str = "recent"
    summary: str = "recent (the first and the newest tokens stay as they are)"
    evicts: bool = True
    hands_over: bool = False
    in_place: bool = True
    needs_scores: bool = False
    decay: float = 1.0
    sink_tokens: int = SINK_TOKENS
    room_share: int = 8

    def kept(self, num_tokens: int, capacity: int, scores: Sequence[float] = ()) -> Sequence[int]:
        """See KvPolicy."""
        if num_tokens < capacity:
            return range(num_tokens)
        num_kept = num_left(capacity, self.room_share)
        num_sink = min(self.sink_tokens, num_kept - 1)
        return [*range(num_sink), *range(num_tokens - (num_kept - num_sink), num_tokens)]


def num_left(capacity: int, room_share: int) -> int:
    """Tokens that stay of a full cache: all but 1/`room_share` of its places; at least one token
    stays, and in a cache of two or more one place gets free."""
    return max(capacity - max(capacity // room_share, 1), 1)

"""`entropy`: the first tokens, the most surprising ones and the newest stay in the cache.

SirLLM (Yao et al., arXiv:2405.12528): a token's entropy is e_i = -log P(x_i | x_<i). Four sinks
stay, then the highest entropies; in each round those of the tokens that stay are multiplied by eta,
0.7 to 1. Ours: a quarter of the cache is for the newest tokens, a round is when the cache is full,
and eta is 1, because such rounds are shorter than the turns of a dialogue. There, keys take the
position of their place in the cache; here they keep their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optimizer.policy.kv.recent import SINK_TOKENS, num_left


@dataclass(frozen=True, slots=True, kw_only=True)
class Entropy:
    """Keep `sink_tokens` from the beginning, 1/`recent_share` of the rest from the end, and the
    most surprising between. 1/`room_share` of the cache gets free. decay: SirLLM's eta."""

    name: str = "entropy"
    summary: str = "entropy (the first, the most surprising and the newest stay as they are)"
    evicts: bool = True
    hands_over: bool = False
    in_place: bool = True
    needs_scores: bool = True
    decay: float = 1.0
    sink_tokens: int = SINK_TOKENS
    recent_share: int = 4
    room_share: int = 8

    def kept(self, num_tokens: int, capacity: int, scores: Sequence[float] = ()) -> Sequence[int]:
        """See KvPolicy. Of equally surprising tokens the newer ones stay. ValueError where there
        are not as many scores as tokens."""
        if num_tokens < capacity:
            return range(num_tokens)
        if len(scores) != num_tokens:
            raise ValueError(f"{len(scores)} scores of {num_tokens} tokens")
        num_kept = num_left(capacity, self.room_share)
        num_sink = min(self.sink_tokens, num_kept - 1)
        num_recent = max((num_kept - num_sink) // self.recent_share, 1)
        between = range(num_sink, num_tokens - num_recent)
        ranked = sorted(between, key=lambda slot: (scores[slot], slot), reverse=True)
        chosen = ranked[: num_kept - num_sink - num_recent]
        return [*range(num_sink), *sorted(chosen), *range(between.stop, num_tokens)]

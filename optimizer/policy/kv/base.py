"""What a KV policy is: it says which tokens of a sequence stay when the cache is full.

A policy decides; it does not move memory. Of a policy `in_place` both sides move the keys and
values of the kept tokens together, and every token keeps its position (`edge.generation.evicting`).
Of the others they compute the kept tokens anew, at new positions (`edge.generation.context`).
Either way a policy may keep any tokens in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class KvPolicy(Protocol):
    """One way to live with a cache of fixed size. Frozen, without state of its own.

    name: as requests and commands spell it. summary: what it does, in a few words of a help text.
    evicts: whether tokens leave the cache when a sequence outgrows it. hands_over: whether the
    server takes over all layers then. Where neither holds, a sequence may not outgrow the cache.
    in_place: whether those that stay keep their cached keys, values and positions. needs_scores:
    whether it wants to know how surprising each token was. decay: what the scores of those that
    stay are multiplied by, once a round.
    """

    @property
    def name(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def evicts(self) -> bool: ...
    @property
    def hands_over(self) -> bool: ...
    @property
    def in_place(self) -> bool: ...
    @property
    def needs_scores(self) -> bool: ...
    @property
    def decay(self) -> float: ...

    def kept(self, num_tokens: int, capacity: int, scores: Sequence[float] = ()) -> Sequence[int]:
        """Places that stay, rising, of `num_tokens` in a cache of `capacity`.

        All of them while one more fits; fewer than `capacity` in any case. scores: of each token,
        its -log P(x_i | x_<i) in nats, multiplied by `decay` for each round that it has stayed;
        empty where `needs_scores` is not set.
        """
        ...

"""What a KV policy is: it says which tokens of a sequence stay when the cache is full.

A policy decides; it does not move memory. Today both sides compute the keys and values of the kept
tokens anew (`edge.generation.context`), so a policy may keep any tokens in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class KvPolicy(Protocol):
    """One way to live with a cache of fixed size. Frozen, without state of its own.

    name: as requests and commands spell it. summary: what it does, in a few words of a help text.
    evicts: whether tokens leave the cache when a sequence outgrows it. hands_over: whether the
    server takes over all layers then. Where neither holds, a sequence may not outgrow the cache.
    """

    @property
    def name(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def evicts(self) -> bool: ...
    @property
    def hands_over(self) -> bool: ...

    def kept(self, num_tokens: int, capacity: int) -> Sequence[int]:
        """Positions that stay, rising, of a sequence of `num_tokens` in a cache of `capacity`.

        All of them while one more fits; fewer than `capacity` in any case.
        """
        ...

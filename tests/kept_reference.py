"""What a whole model says where tokens leave its cache: one forward pass with a mask.

A row attends to the tokens that were in the cache when it was computed, and every position is the
token's own. This is what the two sides of a split have to equal, without a cache of any kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optimizer.policy.kv.base import KvPolicy


class KeptReference:
    """A sequence whose tokens leave a cache of `capacity` by `policy`, in a model without a cache.

    For policies that need scores, a token's is the byte that the wire carries.
    """

    def __init__(self, model: Any, policy: KvPolicy, capacity: int) -> None:
        self._model = model
        self._policy = policy
        self._capacity = capacity
        self.tokens: list[int] = []
        self.cached: list[int] = []  # positions that are in the cache
        self.rounds = 0
        self._scores: list[float] = []  # of the cached
        self._seen: list[list[int]] = []  # by position: what its row attends to
        self._pending = 0.0

    def extend(self, token_ids: Sequence[int], scores: Sequence[float] = ()) -> None:
        """Append tokens; those that are in the way leave first, whenever the cache is full."""
        for index, token_id in enumerate(token_ids):
            if len(self.cached) == self._capacity:
                kept = self._policy.kept(len(self.cached), self._capacity, self._scores)
                self.cached = [self.cached[slot] for slot in kept]
                self._scores = [self._scores[slot] * self._policy.decay for slot in kept]
                self.rounds += 1
            position = len(self.tokens)
            self.tokens.append(token_id)
            self.cached.append(position)
            self._scores.append(scores[index] if scores else 0.0)
            self._seen.append(list(self.cached))

    def _mask(self) -> Tensor:
        count = len(self.tokens)
        mask = torch.full((count, count), torch.finfo(torch.float32).min)
        for row, seen in enumerate(self._seen):
            mask[row, seen] = 0.0
        return mask[None, None]

    def run(self) -> Any:
        """The model's output of the whole sequence, with hidden states."""
        count = len(self.tokens)
        with torch.inference_mode():
            return self._model(
                torch.tensor([self.tokens]),
                attention_mask=self._mask(),
                position_ids=torch.arange(count)[None],
                use_cache=False,
                output_hidden_states=True,
            )

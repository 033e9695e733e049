"""A whole model that reads with a cache of fixed size, in which a policy says which tokens stay."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from transformers import DynamicCache

from optimizer.export.calibration.hidden_states import cache_argument
from optimizer.policy.kv.base import KvPolicy
from protos.entropy_bytes import entropies, entropy_bytes

CHUNK = 128
UNBOUNDED = 1 << 30


@dataclass
class BoundedCache:
    """A model that reads a sequence with at most `budget` cached tokens.

    ids: of the cached tokens. history: of all tokens. logprobs: of every judged token. likeliest:
    whether it was the likeliest. judges: whether tokens are judged, which needs the head for each.
    reread: tokens that were computed again.
    """

    model: Any
    policy: KvPolicy
    budget: int
    judges: bool = False
    ids: list[int] = field(default_factory=list)
    history: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    next_position: int = 0
    peak_tokens: int = 0
    reread: int = 0
    logprobs: list[float] = field(default_factory=list)
    likeliest: list[bool] = field(default_factory=list)
    cache: Any = field(default_factory=DynamicCache)
    hidden: Any = None  # [T, D] of the tokens in `ids`: of a cache that nothing has left

    def copied(self) -> Self:
        """The same state, without judgements; what happens to the copy changes nothing here."""
        twin = copy.copy(self)
        twin.cache = copy.deepcopy(self.cache)
        twin.ids, twin.history = list(self.ids), list(self.history)
        twin.scores, twin.logprobs, twin.likeliest = list(self.scores), [], []
        return twin

    def begin_as(self, other: BoundedCache) -> None:
        """Begin with what a larger cache, which nothing has left, read first: as much as fits."""
        count = min(self._capacity(), len(other.ids))
        for index, layer in enumerate(other.cache.layers):
            keys, values = layer.keys[:, :, :count].clone(), layer.values[:, :, :count].clone()
            self.cache.update(keys, values, index)
        self.ids, self.history = other.ids[:count], other.history[:count]
        self.scores, self.hidden = other.scores[:count], other.hidden[:count]
        self.next_position = self.peak_tokens = count

    def read(self, token_ids: Sequence[int]) -> None:
        """Append tokens, in chunks that end where the cache is full."""
        at = 0
        while at < len(token_ids):
            if len(self.ids) >= self._capacity():
                self._make_room()
            count = min(CHUNK, self._capacity() - len(self.ids), len(token_ids) - at)
            self._run(token_ids[at : at + count])
            at += count

    def _capacity(self) -> int:
        return self.budget

    def _run(self, token_ids: Sequence[int]) -> None:
        last = None if self.hidden is None else self.hidden[-1:]
        rows = self._append(token_ids)
        self.history += token_ids
        if not (self.judges or self.policy.needs_scores):
            self.scores += [0.0] * len(token_ids)
            return
        rows = rows[:-1] if last is None else torch.cat([last, rows[:-1]])
        judged = list(token_ids[len(token_ids) - len(rows) :])
        logits = self._logits(rows)
        chosen = logits.gather(1, torch.tensor(judged)[:, None])[:, 0]
        said = (chosen - torch.logsumexp(logits, dim=-1)).clamp(max=0.0).tolist()
        if self.judges:
            self.logprobs += said
            self.likeliest += (chosen >= logits.amax(dim=-1)).tolist()
        self.scores += [0.0] * (len(token_ids) - len(said)) + list(entropies(entropy_bytes(said)))

    def _logits(self, rows: Any) -> Any:
        with torch.inference_mode():
            return self.model.lm_head(rows)

    def _append(self, token_ids: Sequence[int]) -> Any:
        """Compute tokens behind the cached ones; returns their rows before the head."""
        rows = self._rows(token_ids)
        whole = self.hidden is not None and len(self.hidden) == len(self.ids)
        self.hidden = torch.cat([self.hidden, rows]) if whole else rows
        self.ids += token_ids
        self.next_position += len(token_ids)
        return rows

    def _rows(self, token_ids: Sequence[int]) -> Any:
        past, count = len(self.ids), len(token_ids)
        mask = torch.zeros(count, past + count)
        mask[:, past:] = torch.triu(torch.full((count, count), torch.finfo(mask.dtype).min), 1)
        with torch.inference_mode():
            out = self.model.model(
                torch.tensor([list(token_ids)]),
                attention_mask=mask[None, None],
                position_ids=torch.arange(self.next_position, self.next_position + count)[None],
                use_cache=True,
                **{cache_argument(self.model): self.cache},
            )
        self.peak_tokens = max(self.peak_tokens, past + count)
        return out.last_hidden_state[0]

    def _make_room(self) -> None:
        scores = self.scores if self.policy.needs_scores else ()
        kept = list(self.policy.kept(len(self.ids), self.budget, scores))
        stay = [self.ids[place] for place in kept]
        self.scores = [self.scores[place] * self.policy.decay for place in kept]
        if self.policy.in_place:
            for layer in self.cache.layers:
                layer.keys = layer.keys[:, :, kept].contiguous()
                layer.values = layer.values[:, :, kept].contiguous()
            self.ids, self.hidden = stay, self.hidden[-1:]
            return
        self.cache, self.ids, self.next_position, self.hidden = DynamicCache(), [], 0, None
        self.reread += len(stay)
        for at in range(0, len(stay), CHUNK):
            self._append(stay[at : at + CHUNK])

"""EpiCache's eviction (Kim et al., arXiv:2509.17396) with one episode, in a whole model.

A block of tokens is read. Then a patched prompt runs over the cache, and its rows do not stay. A
key's score is the largest probability that a row of this prompt gives it, over the cached keys. The
best of each layer stay, at their positions. Scores are made anew after each block.

The patched prompt is an instruction and the beginnings of the segments (four utterances) that lie
next to the mean of all segments, in their order. A segment's embedding is the mean of its tokens'
rows of the model's embedding. As in our other policies, the first tokens and the newest stay. The
shares of the budget are ours: 1/8 is the patched prompt's, 1/4 a block's, and the rest stays. So
the budget is the most that is cached at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from transformers import AttentionInterface

from benchmarks.edge.bounded_cache import BoundedCache
from optimizer.policy.kv.recent import SINK_TOKENS

INSTRUCTION: Final = (
    "\n<|im_start|>user\nRepeat what matters in this conversation: names, numbers, dates, promises "
    "and wishes.<|im_end|>\n<|im_start|>assistant\n"
)
UTTERANCES: Final = 4  # of a segment
SCORED: Final = "sdpa_with_key_scores"
WAYS: Final = ("head", "layer", "model")  # what has one set of kept tokens of its own


@dataclass
class EpisodicCache(BoundedCache):
    """by: whether the best keys are chosen for each head, each layer, or the whole model.

    recent_share: 1/N of what stays is newest; 0: none has to be. tokenizer: for the instruction.
    """

    by: str = "layer"
    recent_share: int = 4
    tokenizer: Any = None
    key_scores: list[Any] = field(default_factory=list)  # by layer: [G, N]

    def _capacity(self) -> int:
        return self.budget - self.budget // 8

    def _make_room(self) -> None:
        num_tokens = len(self.ids)
        num_kept = self._capacity() - self.budget // 4
        self._score_keys()
        num_recent = (num_kept - SINK_TOKENS) // self.recent_share if self.recent_share else 0
        scores = torch.stack(self.key_scores)  # [L, G, N]
        if self.by == "layer":
            scores = scores.amax(dim=1, keepdim=True).expand_as(scores)
        if self.by == "model":
            scores = scores.amax(dim=1).mean(dim=0).expand_as(scores)
        scores = scores.clone()
        scores[..., :SINK_TOKENS] = 2.0
        scores[..., num_tokens - num_recent :] = 2.0
        best = scores.topk(num_kept, dim=-1).indices.sort(dim=-1).values
        for places, layer in zip(best, self.cache.layers, strict=True):
            at = places[None, :, :, None].expand(-1, -1, -1, layer.keys.shape[-1])
            layer.keys = layer.keys.gather(2, at)
            layer.values = layer.values.gather(2, at)
        # With sets of their own there is no one list of cached tokens: only their number is used.
        self.ids = [self.ids[place] for place in best[0, 0].tolist()]
        self.scores, self.hidden = self.scores[:num_kept], self.hidden[-1:]

    def _score_keys(self) -> None:
        """Run the patched prompt, note each key's score, and forget the prompt's rows."""
        num_tokens = len(self.ids)
        self.key_scores = []
        _NOTED.update(scores=self.key_scores, num_keys=num_tokens)
        usual = self.model.config._attn_implementation
        self.model.set_attn_implementation(SCORED)
        try:
            self.reread += len(prompt := self._patched_prompt())
            self._rows(prompt)
        finally:
            self.model.set_attn_implementation(usual)
        for layer in self.cache.layers:
            layer.keys = layer.keys[:, :, :num_tokens]
            layer.values = layer.values[:, :, :num_tokens]

    def _patched_prompt(self) -> list[int]:
        asked = self.tokenizer.encode(INSTRUCTION)
        segments = _segments(self.history, self.tokenizer.encode("<|im_start|>")[0])
        table = self.model.get_input_embeddings().weight
        means = torch.stack([table[torch.tensor(segment)].mean(dim=0) for segment in segments])
        means = torch.nn.functional.normalize(means, dim=-1)
        nearest = (means @ means.mean(dim=0)).argsort(descending=True)[:4].sort().values
        room = max(self.budget // 8 - len(asked), 0) // len(nearest)
        return asked + [token for index in nearest for token in segments[index][:room]]


def _segments(token_ids: Sequence[int], begin: int) -> list[list[int]]:
    starts = [at for at, token in enumerate(token_ids) if token == begin][::UTTERANCES] or [0]
    ends = [*starts[1:], len(token_ids)]
    return [list(token_ids[at:end]) for at, end in zip(starts, ends, strict=True)]


_NOTED: dict[str, Any] = {}


def _scored(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
    """The usual attention; notes each cached key's score, [G, N], by layer."""
    groups, keys = key.shape[1], key[0, :, : _NOTED["num_keys"]]
    rows = query[0].unflatten(0, (groups, -1))  # [G, H/G, rows, d]
    logits = torch.einsum("ghrd,gnd->ghrn", rows, keys) * options["scaling"]
    _NOTED["scores"].append(logits.softmax(dim=-1).amax(dim=(1, 2)))
    usual = AttentionInterface()["sdpa"]
    return usual(module, query, key, value, mask, **options)


AttentionInterface.register(SCORED, _scored)

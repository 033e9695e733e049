"""A model's multi-token-prediction layer as a draft head (DeepSeek-V3, arXiv:2412.19437, eq. 21).

    h'_t = layer(join [norm_e(embedding of token t + 1), norm_h(h_t)])

h_t is the model's normed final state; a further guess reads h' in its place. Letters in shapes are
those of `cloud.drafting.draft_network`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from cloud.attention.base import Attend, AttentionTraits
from cloud.attention.transformers_interface import attending
from cloud.drafting.draft_network import Embed, HeadChoices, KvHeads
from cloud.drafting.mtp_spec import MtpWeights
from cloud.errors import WeightsError

_FLOAT_BYTES: Final = 4


class MtpHead:
    """See the module's docstring. A DraftNetwork on a CPU, in float32.

    embed: the model's own embedding, for a checkpoint that brings none. logits: the model's own
    norm-free head [T, D] -> [T, V], for one without.
    """

    form = "mtp"
    reads_normed = True

    def __init__(
        self, weights: MtpWeights, *, embed: Embed | None, logits: Callable[[Tensor], Tensor]
    ) -> None:
        self._weights = weights
        self._embed = embed
        self._logits = logits
        self.layers = (weights.num_layers,)
        self.kv_heads = _kv_heads(weights)
        modules = (weights.layer, *weights.norms)
        tensors = [one for module in modules for one in module.state_dict().values()]
        held = [one for one in (weights.head, weights.embedding, weights.join) if one is not None]
        self.num_bytes = _FLOAT_BYTES * sum(one.numel() for one in (*tensors, *held))

    def run(
        self, states: Tensor, token_ids: Sequence[int], positions: Sequence[int], attend: Attend
    ) -> Tensor:
        """See DraftNetwork. states: float32 [T, D]."""
        embedding_norm, state_norm, out_norm = self._weights.norms
        parts = embedding_norm(self._embedded(token_ids)), state_norm(states)
        x = F.linear(torch.cat(parts, -1), self._weights.join)[None]
        cos, sin = self._weights.rotary(x, torch.tensor(positions)[None])

        def of_one_layer(_: int, query: Tensor, kv: Tensor, traits: AttentionTraits) -> Tensor:
            return attend(0, query, kv, traits)

        with attending(of_one_layer):
            out: Tensor = self._weights.layer(x, position_embeddings=(cos, sin))[0]
        return out_norm(out) if self._weights.form.follows_normed else out

    follow = run

    def choices(self, own: Tensor, count: int) -> HeadChoices:
        """See DraftNetwork."""
        if not self._weights.form.follows_normed:
            own = self._weights.norms[2](own)
        head = self._weights.head
        logits = self._logits(own) if head is None else F.linear(own, head)
        shares, token_ids = logits.softmax(-1).topk(count, dim=-1)
        return HeadChoices(token_ids, shares)

    def _embedded(self, token_ids: Sequence[int]) -> Tensor:
        if self._weights.embedding is not None:
            return self._weights.embedding[list(token_ids)]
        if self._embed is None:
            raise ValueError("a head without an embedding of its own, and the model has none here")
        return self._embed(token_ids)


def try_head(head: MtpHead, folder: Path, *, width: int) -> None:
    """Run one row: what a config claims beyond the shapes of tensors shows only then.

    Raises WeightsError, in one line, where the layer does not run or gives no finite values.
    """

    def nothing(_: int, query: Tensor, kv: Tensor, traits: AttentionTraits) -> Tensor:
        return torch.zeros_like(query)

    try:
        with torch.inference_mode():
            shares = head.choices(head.run(torch.ones(1, width), [0], [0], nothing), 1).shares
    except Exception as error:  # transformers and torch raise many kinds
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{folder}: the layer does not run ({reason})") from error
    if not bool(shares.isfinite().all()):
        raise WeightsError(f"{folder}: the layer gives values that are not finite")


def _kv_heads(weights: MtpWeights) -> KvHeads:
    """Of latent attention (MLA) the expanded heads are kept, values padded to the keys' width."""
    config = weights.config
    if (latent := getattr(config, "qk_head_dim", None)) is not None:
        return KvHeads(int(config.num_attention_heads), int(latent))
    return KvHeads(int(config.num_key_value_heads), int(config.head_dim))

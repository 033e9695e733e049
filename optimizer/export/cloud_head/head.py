"""The cloud's draft head while it is trained: EAGLE's form, with steps over its own states.

Letters in shapes: B passages, T states of each, D the model's width. In pass j, at index t, the
head reads its state s_j[t] and the embedding of token t + 1 + j. It predicts the model's normed
state t + 1 + j. s_0 are the model's own states; s_j is what the head gave in pass j - 1. As in
drafting, a row of pass j sees the rows of pass 0 up to its index, and the rows of the passes
between of its own index. That is the training-time test of EAGLE-3 (Li et al. 2025,
arXiv:2503.01840, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON: Final = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSizes:
    """Sizes of a head's decoder layer. vocab_size: tokens that it knows."""

    hidden_size: int
    inner: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int


class CloudHead(nn.Module):
    """See the module's docstring. embedding: [V', D] the model's head for `tokens` int64 [V']."""

    tokens: Tensor
    embedding: Tensor

    def __init__(self, sizes: HeadSizes, *, tokens: Tensor, embedding: Tensor, rotary: Any) -> None:
        super().__init__()
        width, heads = sizes.hidden_size, sizes.num_heads * sizes.head_dim
        keys = sizes.num_kv_heads * sizes.head_dim

        def linear(into: int, out: int) -> nn.Linear:
            return nn.Linear(into, out, bias=False)

        self.sizes = sizes
        self.fc = linear(2 * width, width)
        self.q_proj, self.o_proj = linear(width, heads), linear(heads, width)
        self.k_proj, self.v_proj = linear(width, keys), linear(width, keys)
        self.gate_proj, self.up_proj = linear(width, sizes.inner), linear(width, sizes.inner)
        self.down_proj = linear(sizes.inner, width)
        self.input_layernorm = nn.RMSNorm(width, eps=EPSILON)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=EPSILON)
        self.register_buffer("tokens", tokens)
        self.register_buffer("embedding", embedding)
        self._rotary = rotary

    def passes(self, states: Tensor, embedded: Tensor, count: int) -> list[Tensor]:
        """What the head gives in `count` passes, [B, T, D] each.

        states: [B, T, D]; embedded: [B, T + count, D] of the tokens from 1 on (zeros where there is
        none any more).
        """
        length = states.shape[1]
        angles = self._angles(length + count, states)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        found: list[Tensor] = []
        for step in range(count):
            x = self.fc(torch.cat([embedded[:, step : step + length], states], -1))
            places = slice(step, step + length)
            states = self._layer(x, (angles[0][places], angles[1][places]), keys, values)
            found.append(states)
        return found

    def logits(self, own: Tensor) -> Tensor:
        """Logits [..., V'] of its states, or of the model's own normed states."""
        return F.linear(own, self.embedding)

    def _layer(
        self, x: Tensor, angles: tuple[Tensor, Tensor], keys: list[Tensor], values: list[Tensor]
    ) -> Tensor:
        sizes, (rows, length, _) = self.sizes, x.shape
        normed = self.input_layernorm(x)

        def split(values: Tensor, count: int) -> Tensor:
            return values.view(rows, length, count, sizes.head_dim).transpose(1, 2)

        query = _rotated(split(self.q_proj(normed), sizes.num_heads), angles)
        group = sizes.num_heads // sizes.num_kv_heads
        key = _rotated(split(self.k_proj(normed), sizes.num_kv_heads), angles)
        value = split(self.v_proj(normed), sizes.num_kv_heads)
        keys.append(key.repeat_interleave(group, 1))
        values.append(value.repeat_interleave(group, 1))
        mixed = _attend(query, keys, values)
        hidden = x + self.o_proj(mixed.transpose(1, 2).reshape(rows, length, -1))
        inner = self.post_attention_layernorm(hidden)
        out: Tensor = hidden + self.down_proj(F.silu(self.gate_proj(inner)) * self.up_proj(inner))
        return out

    def _angles(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self._rotary(like, torch.arange(length, device=like.device)[None])
        return cos[0], sin[0]


def _attend(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Pass 0 up to the row's index, and the row's own index of the passes behind. [B, H, T, d]."""
    scale, length = query.shape[-1] ** -0.5, query.shape[2]
    first = query @ keys[0].transpose(-1, -2)
    hidden = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    scores = [first.masked_fill(hidden, -torch.inf)]
    scores += [(query * key).sum(-1, keepdim=True) for key in keys[1:]]
    shares = (torch.cat(scores, -1) * scale).softmax(-1)
    mixed: Tensor = shares[..., :length] @ values[0]
    for at, value in enumerate(values[1:]):
        mixed = mixed + shares[..., length + at, None] * value
    return mixed


def _rotated(heads: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = angles
    left, right = heads.chunk(2, -1)
    return heads * cos + torch.cat([-right, left], -1) * sin

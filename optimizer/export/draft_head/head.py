"""The draft head: from the front's hidden state to a guess of the model's next token.

    x = rms_norm(h)                       h [D]: the residual stream at the split
    y = W x + mlp_1(x) + mlp_2(rms_norm(W x + mlp_1(x))) + ...
    logits = y E'^T                       E' [V', D]: the model's own head, frequent tokens only

An early exit with an adapter, as in Kangaroo (Liu et al. 2024, arXiv:2404.18911, section 3): the
layers that run on the device anyway are the drafter's body, so a guess costs the adapter and the
head. Unlike EAGLE (Li et al. 2024, arXiv:2401.15077), which has to feed its own predicted states
back, every guess is made from a true hidden state: the device computes the front's row of each
draft in any case, because that row is what it sends. The adapter works position by position; what
came before is in h already, through the front's attention. The head keeps the V' tokens that the
model says most (Zhao et al. 2025, FR-Spec, arXiv:2502.14856): most of its cost, little of its use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-6
# Ridge of the linear start, as a share of the mean variance of a channel: ours.
_RIDGE = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadShape:
    """Sizes of a head. num_blocks: residual MLPs of `inner` channels."""

    hidden_size: int
    vocab_size: int
    num_blocks: int = 2
    inner: int = 1024

    @property
    def num_parameters(self) -> int:
        """Weights of the matrices, the frozen ones included."""
        per_block = 3 * self.hidden_size * self.inner
        return self.hidden_size * (self.hidden_size + self.vocab_size) + self.num_blocks * per_block


class DraftMlp(nn.Module):
    """A gated MLP (SwiGLU, Shazeer 2020, arXiv:2002.05202) that begins as zero."""

    def __init__(self, hidden_size: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, inner, bias=False)
        self.up = nn.Linear(hidden_size, inner, bias=False)
        self.down = nn.Linear(inner, hidden_size, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class DraftHead(nn.Module):
    """See the module's docstring. tokens: [V'] the ids that its logits stand for, rising."""

    tokens: Tensor
    embedding: Tensor

    def __init__(self, shape: HeadShape, *, tokens: Tensor, embedding: Tensor) -> None:
        super().__init__()
        self.shape = shape
        self.linear = nn.Linear(shape.hidden_size, shape.hidden_size, bias=False)
        self.mlps = [DraftMlp(shape.hidden_size, shape.inner) for _ in range(shape.num_blocks)]
        self.blocks = nn.ModuleList(self.mlps)  # where torch looks for their weights
        self.register_buffer("tokens", tokens)
        self.register_buffer("embedding", embedding)

    def states(self, hidden: Tensor) -> Tensor:
        """What the final norm is expected to give. [..., D] -> [..., D]."""
        x = rms_norm(hidden)
        y: Tensor = self.linear(x)
        for index, block in enumerate(self.mlps):
            y = y + block(x if index == 0 else rms_norm(y))
        return y

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [..., V'] of `tokens`."""
        return F.linear(self.states(hidden), self.embedding)


def rms_norm(x: Tensor) -> Tensor:
    """Zhang and Sennrich 2019 (arXiv:1910.07467), without weights: the next matrix has them."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)


def frequent_tokens(
    token_ids: npt.NDArray[np.int64], *, vocab_size: int, count: int
) -> npt.NDArray[np.int64]:
    """The `count` ids worth a place in the head, rising: the text's frequent ones, then low ids.

    Byte-pair vocabularies are in order of merging, so a low id is a frequent token.
    """
    seen = np.bincount(token_ids, minlength=vocab_size)
    ranked = np.lexsort((np.arange(vocab_size), -seen))
    return np.sort(ranked[: min(count, vocab_size)])


def fit_linear(
    head: DraftHead, hidden: npt.NDArray[np.float16], states: npt.NDArray[np.float16]
) -> None:
    """Start the linear part at its least-squares value (ridge), block by block of rows."""
    size = head.shape.hidden_size
    gram, cross = torch.zeros(size, size), torch.zeros(size, size)
    for begin in range(0, len(hidden), 4096):
        x = rms_norm(torch.from_numpy(hidden[begin : begin + 4096]).float())
        gram += x.T @ x
        cross += x.T @ torch.from_numpy(states[begin : begin + 4096]).float()
    gram += torch.eye(size) * (_RIDGE * gram.diagonal().mean())
    with torch.no_grad():
        head.linear.weight.copy_(torch.linalg.solve(gram, cross).T)


def output_embedding(model: Any) -> Tensor:
    """The model's own head [V, D], tied or not, as float32. Biases are not supported."""
    weight: Tensor = model.get_output_embeddings().weight
    return weight.detach().float()

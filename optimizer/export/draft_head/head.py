"""The draft head: from the front's hidden state to a guess of the model's next token.

    x = rms_norm(h)                       h [D]: the residual stream at the split
    y = W x + mlp_1(x) + mlp_2(rms_norm(W x + mlp_1(x))) + ...
    logits = y E'^T                       E' [V', D]: the model's own head, frequent tokens only

This is an early exit with an adapter, as in Kangaroo (Liu et al. 2024, arXiv:2404.18911, section
3). The drafter's body is the layers that run on the device anyway, so a guess costs the adapter and
the head. EAGLE (Li et al. 2024, arXiv:2401.15077) feeds its own predicted states back. Here every
guess comes from a true hidden state: the device computes the front's row of each draft in any case,
because it sends that row. The adapter works position by position, since h already holds what came
before, through the front's attention. The head keeps the V' tokens that the model says most often
(Zhao et al. 2025, FR-Spec, arXiv:2502.14856): the other tokens cost much and are seldom needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optimizer.export.draft_head.stored_rows import HalfRows
from optimizer.export.layers.tensor_source import TensorSource
from optimizer.export.sources.tensor_names import EMBEDDING_NAME, HEAD_NAME

EPSILON: Final = 1e-6
# Ridge of the linear start, as a share of the mean variance of a channel: ours.
_RIDGE: Final = 1e-2


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


class GatedMlp(nn.Module):
    """A gated MLP (SwiGLU, Shazeer 2020, arXiv:2002.05202) that gives zero before training."""

    def __init__(self, hidden_size: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, inner, bias=False)
        self.up = nn.Linear(hidden_size, inner, bias=False)
        self.down = nn.Linear(inner, hidden_size, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class DraftHead(nn.Module):
    """See the module's docstring. tokens: int64 [V'] the ids of its logits, in rising order."""

    tokens: Tensor
    embedding: Tensor

    def __init__(self, shape: HeadShape, *, tokens: Tensor, embedding: Tensor) -> None:
        super().__init__()
        self.shape = shape
        self.linear = nn.Linear(shape.hidden_size, shape.hidden_size, bias=False)
        self.mlps = [GatedMlp(shape.hidden_size, shape.inner) for _ in range(shape.num_blocks)]
        self.blocks = nn.ModuleList(self.mlps)  # where torch looks for their weights
        self.register_buffer("tokens", tokens)
        self.register_buffer("embedding", embedding)

    def states(self, hidden: Tensor) -> Tensor:
        """A guess of what the model's final norm gives. [..., D] -> [..., D]."""
        x = rms_norm(hidden)
        y: Tensor = self.linear(x)
        for index, block in enumerate(self.mlps):
            y = y + block(x if index == 0 else rms_norm(y))
        return y

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [..., V'] of `tokens`."""
        return F.linear(self.states(hidden), self.embedding)


def rms_norm(x: Tensor) -> Tensor:
    """Zhang and Sennrich 2019 (arXiv:1910.07467), without weights: the next matrix has learnt them.

    [..., D] -> [..., D].
    """
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)


def frequent_tokens(
    token_ids: npt.NDArray[np.int64], *, vocab_size: int, count: int
) -> npt.NDArray[np.int64]:
    """The `count` ids that the head keeps, in rising order: the most frequent in `token_ids`.

    Among tokens of the same count the lower ids come first: byte-pair vocabularies are in order of
    merging, so a low id is a frequent token.
    """
    seen = np.bincount(token_ids, minlength=vocab_size)
    ranked = np.lexsort((np.arange(vocab_size), -seen))
    return np.sort(ranked[: min(count, vocab_size)])


def fit_linear(head: DraftHead, hidden: HalfRows, states: HalfRows) -> None:
    """Set the linear part to its least-squares value (ridge) over rows and states [N, D].

    Both are read once, a part at a time.
    """
    size = head.shape.hidden_size
    gram, cross = torch.zeros(size, size), torch.zeros(size, size)
    for begin in range(0, len(hidden), 4096):
        x = rms_norm(torch.from_numpy(hidden[begin : begin + 4096]).float())
        gram += x.T @ x
        cross += x.T @ torch.from_numpy(states[begin : begin + 4096]).float()
    gram += torch.eye(size) * (_RIDGE * gram.diagonal().mean())
    with torch.no_grad():
        head.linear.weight.copy_(torch.linalg.solve(gram, cross).T)


def output_embedding(source: TensorSource) -> Tensor:
    """The model's own head [V, D] in its stored type, tied or not. A bias is left out."""
    return source.read(HEAD_NAME if HEAD_NAME in source.tensor_names else EMBEDDING_NAME)

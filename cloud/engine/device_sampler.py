"""Drawing tokens on the device: `decoding.sampler`'s rules over many rows at once.

The uniform numbers have the CPU's bits (`cloud.gpu.random_numbers`), and probabilities are float64
as there. Only the order of float64 sums differs: a token differs from the CPU's where the uniform
number lies within some 1e-15 of the border between two tokens, and where the logits differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cloud.engine.drawing import Drawing
from decoding.params import SamplingParams

# Rows whose probabilities exist at once: float64 of 32 rows and 150,000 tokens are 38 MB.
ROWS_AT_ONCE: Final = 32


class DrawnRow(NamedTuple):
    """A row of the logits that is drawn from, not the most likely token taken."""

    row: int
    params: SamplingParams
    position: int


def drawn_rows(drawings: Sequence[tuple[int, Drawing | None, int]]) -> list[DrawnRow]:
    """The rows that need a draw. drawings: (first logits row, drawing, number of rows) each."""
    return [
        DrawnRow(first + index, drawing.params, drawing.position + index)
        for first, drawing, count in drawings
        if drawing is not None and not drawing.params.greedy
        for index in range(count)
    ]


def draw(logits: Tensor, rows: Sequence[DrawnRow]) -> Tensor:
    """Token ids int64 [N] of `rows`, N of them. logits: float32 [L, V], on the device."""
    parts = [
        _draw(logits, rows[begin : begin + ROWS_AT_ONCE])
        for begin in range(0, len(rows), ROWS_AT_ONCE)
    ]
    return torch.cat(parts)


def _draw(logits: Tensor, rows: Sequence[DrawnRow]) -> Tensor:
    from cloud.gpu.random_numbers import uniforms

    device = logits.device
    seeds = np.array([row.params.seed for row in rows], dtype=np.uint64).view(np.int64)
    ints = np.stack([seeds, [row.position for row in rows], [row.row for row in rows]])
    seed, position, index = torch.from_numpy(ints).to(device)
    weights = _probabilities(logits[index], [row.params for row in rows])
    cumulative = weights.cumsum(dim=1)
    point = uniforms(seed.contiguous(), position.contiguous())[:, None] * cumulative[:, -1:]
    ids = torch.searchsorted(cumulative, point, right=True)[:, 0]
    # Rounding may lead past the last token that can come.
    last = weights.shape[1] - 1 - (weights > 0).flip(1).int().argmax(dim=1)
    return torch.minimum(ids, last)


def _probabilities(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """`decoding.sampler.probabilities` of each row: float64 [N, V]."""
    columns = np.array([(p.temperature, p.top_p, p.min_p, p.top_k) for p in params]).T
    temperature, top_p, min_p, top_k = torch.from_numpy(columns).to(logits.device)[:, :, None]
    scaled = logits.double() / temperature
    weights = torch.exp(scaled - scaled.max(dim=1, keepdim=True).values)
    weights /= weights.sum(dim=1, keepdim=True)
    filtered = [i for i, p in enumerate(params) if p.top_k or p.top_p < 1.0]
    if filtered:
        some = torch.tensor(filtered, device=logits.device)
        weights[some] = _nucleus(weights[some], top_k[some], top_p[some])
    if any(p.min_p for p in params):
        highest = weights.max(dim=1, keepdim=True).values
        weights = torch.where(weights < min_p * highest, 0.0, weights)
    weights /= weights.sum(dim=1, keepdim=True)
    return weights


def _nucleus(weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Keep the top_k largest (0: all), and of these the fewest that reach top_p. [N, V] -> same."""
    ordered, order = torch.sort(weights, dim=1, descending=True, stable=True)
    rank = torch.arange(weights.shape[1], device=weights.device)
    limit = torch.where(top_k > 0, top_k, float(weights.shape[1]))
    ordered = torch.where(rank < limit, ordered, 0.0)
    cumulative = ordered.cumsum(dim=1) / ordered.sum(dim=1, keepdim=True)
    # The token that reaches top_p stays in; a row with top_p 1 loses nothing here.
    before = torch.where(top_p < 1.0, cumulative, 0.0)
    reached = torch.searchsorted(before.contiguous(), top_p.contiguous())
    keep = torch.where(top_p < 1.0, reached, weights.shape[1]) >= rank
    return torch.zeros_like(weights).scatter_(1, order, torch.where(keep, ordered, 0.0))

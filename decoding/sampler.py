"""From logits to tokens: filters, one uniform random number a position, draft verification.

The random number of a position depends on the seed and the position alone (a counter-based
generator, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). So a replayed
session draws the same tokens, and so does a drafted one. To verify a draft, we draw the position's
token as plain decoding would, and keep the draft when they agree. That accepts a one-hot draft
with exactly the target's probability of it, and draws the correction from the rest. This is the
rejection rule of Leviathan et al. 2023 (arXiv:2211.17192, Algorithm 1) for one-hot drafts. The
outcome is not only distributed like plain decoding; it is equal to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from decoding.params import SamplingParams

Logits = npt.NDArray[np.float32]


class Sampled(NamedTuple):
    """One chosen token and its natural-log probability under the unfiltered model."""

    token_id: int
    logprob: float


def sample(
    logits: Logits, params: SamplingParams, *, position: int, seen: Iterable[int] = ()
) -> Sampled:
    """Choose the token at `position` (the position it will take in the sequence).

    logits: [V] float32. seen: ids of prompt and output so far, for the repetition penalty.
    `logprob` is that of the model's own distribution, before temperature, filters and penalty
    (0.0 unless `params.logprobs`).
    """
    scores = penalized(logits, params.repetition_penalty, seen)
    token_id = int(scores.argmax()) if params.greedy else _draw(scores, params, position)
    return Sampled(token_id, log_probability(logits, token_id) if params.logprobs else 0.0)


def verify(
    logits: Logits,
    drafts: Sequence[int],
    params: SamplingParams,
    *,
    position: int,
    seen: Iterable[int] = (),
) -> list[Sampled]:
    """Accept drafts while they equal what would have been drawn, then add one token.

    logits: [K + 1, V], row i being the model's answer after draft i (row 0: before any).
    drafts: K guesses for positions `position`, `position + 1`, ... Returns 1 to K + 1 tokens:
    the accepted drafts and the correction, or all drafts and a bonus token.
    """
    history = list(seen) if params.repetition_penalty != 1.0 else []
    chosen: list[Sampled] = []
    for index, row in enumerate(logits):
        token = sample(row, params, position=position + index, seen=history)
        chosen.append(token)
        if index >= len(drafts) or token.token_id != drafts[index]:
            break
        history.append(token.token_id)
    return chosen


def probabilities(scores: Logits, params: SamplingParams) -> npt.NDArray[np.float64]:
    """The distribution tokens are drawn from: temperature, then top-k, top-p, min-p.

    scores: [V] float32. Returns [V] float64 that sums to 1. Ties at a filter's edge keep the
    lower ids, so that the outcome does not depend on the sorting algorithm.
    """
    scaled = scores.astype(np.float64) / params.temperature
    weights: npt.NDArray[np.float64] = np.exp(scaled - scaled.max())
    weights /= weights.sum()
    if params.top_k or params.top_p < 1.0:
        order = np.argsort(-weights, kind="stable")
        if params.top_k:
            order = order[: params.top_k]
        if params.top_p < 1.0:
            cumulative = np.cumsum(weights[order]) / weights[order].sum()
            # The token that reaches top_p stays in.
            order = order[: int(np.searchsorted(cumulative, params.top_p)) + 1]
        kept = np.zeros_like(weights)
        kept[order] = weights[order]
        weights = kept
    if params.min_p:
        weights[weights < params.min_p * weights.max()] = 0.0
    weights /= weights.sum()
    return weights


def penalized(logits: Logits, penalty: float, seen: Iterable[int]) -> Logits:
    """Logits with the repetition penalty applied to the tokens in `seen`. [V] -> [V]."""
    if penalty == 1.0:
        return logits
    scores = logits.copy()
    ids = np.unique(np.fromiter(seen, dtype=np.int64))
    values = scores[ids]
    scores[ids] = np.where(values > 0, values / penalty, values * penalty)
    return scores


def log_probability(logits: Logits, token_id: int) -> float:
    """Natural log of the softmax of `logits` [V] at `token_id`."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return float(shifted[token_id] - np.log(np.exp(shifted).sum()))


def _draw(scores: Logits, params: SamplingParams, position: int) -> int:
    cumulative = np.cumsum(probabilities(scores, params))
    point = uniform(params.seed, position) * cumulative[-1]
    index = int(np.searchsorted(cumulative, point, side="right"))
    return min(index, int(np.flatnonzero(np.diff(cumulative, prepend=0.0))[-1]))


def uniform(seed: int, position: int) -> float:
    """The uniform number in [0, 1) of one position: a function of seed and position alone."""
    generator = np.random.Generator(np.random.Philox(key=seed, counter=position))
    return float(generator.random())

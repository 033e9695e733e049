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
from decoding.penalties import Logits, TokenMask, adjusted, looks_back
from decoding.scores import TokenScore, TopToken


class Sampled(NamedTuple):
    """One chosen token, its natural-log probability under the unfiltered model, and the top ones.

    top: the most likely tokens of the position, where `SamplingParams.top_logprobs` asks.
    """

    token_id: int
    logprob: float
    top: tuple[TopToken, ...] = ()


def sample(
    logits: Logits,
    params: SamplingParams,
    *,
    position: int,
    seen: Iterable[int] = (),
    num_prompt: int = 0,
    mask: TokenMask | None = None,
) -> Sampled:
    """Choose the token at `position` (the position it will take in the sequence).

    logits: [V] float32. seen: ids of prompt and output so far, for the penalties; the first
    `num_prompt` are the prompt. mask: the tokens that a grammar allows, at least one. `logprob` is
    that of the model's own distribution, before temperature, filters, penalties, bias and mask (0.0
    unless `params.logprobs`).
    """
    history = list(seen) if looks_back(params) else []
    scores = adjusted(logits, params, seen=history, num_prompt=num_prompt, mask=mask)
    token_id = int(scores.argmax()) if params.greedy else _draw(scores, params, position)
    if not params.logprobs:
        return Sampled(token_id, 0.0)
    return Sampled(*score(logits, token_id, params.top_logprobs))


def verify(
    logits: Logits,
    drafts: Sequence[int],
    params: SamplingParams,
    *,
    position: int,
    seen: Iterable[int] = (),
    num_prompt: int = 0,
    masks: Sequence[TokenMask] | None = None,
) -> list[Sampled]:
    """Accept drafts while they equal what would have been drawn, then add one token.

    logits: [K + 1, V], row i being the model's answer after draft i (row 0: before any).
    drafts: K guesses for positions `position`, `position + 1`, ... masks: one for each row, up to
    the first draft that the grammar forbids. Returns 1 to K + 1 tokens: the accepted drafts and the
    correction, or all drafts and a bonus token.
    """
    history = list(seen) if looks_back(params) else []
    chosen: list[Sampled] = []
    for index, row in enumerate(logits):
        token = sample(
            row,
            params,
            position=position + index,
            seen=history,
            num_prompt=num_prompt,
            mask=None if masks is None else masks[index],
        )
        chosen.append(token)
        if index >= len(drafts) or token.token_id != drafts[index]:
            break
        history.append(token.token_id)
    return chosen


def accepted(drawn: Sequence[int], drafts: Sequence[int]) -> list[Sampled]:
    """What `verify` returns where the tokens were drawn before: one a row, without logprobs.

    drawn: K + 1 tokens, row i's being what plain decoding draws after draft i.
    """
    count = 0
    while count < len(drafts) and drawn[count] == drafts[count]:
        count += 1
    return [Sampled(token_id, 0.0) for token_id in drawn[: count + 1]]


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


def score(logits: Logits, token_id: int, num_top: int = 0) -> TokenScore:
    """A token's natural log of the softmax of `logits` [V], and the `num_top` most likely ones.

    Equal tokens come in the order of their ids.
    """
    shifted = logits.astype(np.float64) - float(logits.max())
    total = float(np.log(np.exp(shifted).sum()))
    top: tuple[TopToken, ...] = ()
    if num_top:
        count = min(num_top, len(logits))
        least = np.partition(logits, len(logits) - count)[len(logits) - count]
        ids = np.flatnonzero(logits >= least)
        ids = ids[np.argsort(-logits[ids], kind="stable")][:count]
        top = tuple(TopToken(int(index), float(shifted[index] - total)) for index in ids)
    return TokenScore(token_id, float(shifted[token_id] - total), top)


def _draw(scores: Logits, params: SamplingParams, position: int) -> int:
    cumulative = np.cumsum(probabilities(scores, params))
    point = uniform(params.seed, position) * cumulative[-1]
    index = int(np.searchsorted(cumulative, point, side="right"))
    return min(index, int(np.flatnonzero(np.diff(cumulative, prepend=0.0))[-1]))


def uniform(seed: int, position: int) -> float:
    """The uniform number in [0, 1) of one position: a function of seed and position alone."""
    generator = np.random.Generator(np.random.Philox(key=seed, counter=position))
    return float(generator.random())

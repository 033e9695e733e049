"""What is added to or taken from logits before a token is chosen: penalties, bias and a mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from decoding.params import SamplingParams

Logits: TypeAlias = npt.NDArray[np.float32]
# Which tokens may come: uint8 [ceil(V / 8)], one bit a token, the lowest bit first.
TokenMask: TypeAlias = npt.NDArray[np.uint8]


def looks_back(params: SamplingParams) -> bool:
    """Whether the scores of a position depend on the tokens before it."""
    return bool(
        params.repetition_penalty != 1.0 or params.frequency_penalty or params.presence_penalty
    )


def adjusted(
    logits: Logits,
    params: SamplingParams,
    *,
    seen: Sequence[int] = (),
    num_prompt: int = 0,
    mask: TokenMask | None = None,
) -> Logits:
    """The scores that a token is chosen by. [V] -> [V]; `logits` itself where nothing changes it.

    seen: ids of prompt and answer so far; the first `num_prompt` are the prompt. First the
    repetition penalty over both, then the penalties that count in the answer, then the bias. Tokens
    that `mask` forbids get minus infinity.
    """
    scores = penalized(logits, params.repetition_penalty, seen)
    if params.frequency_penalty or params.presence_penalty:
        scores = _counted(scores, params, seen[num_prompt:])
    if params.logit_bias:
        scores = _biased(scores, params)
    if mask is not None:
        scores = masked(scores, mask)
    return scores


def penalized(logits: Logits, penalty: float, seen: Iterable[int]) -> Logits:
    """Logits with the repetition penalty applied to the tokens in `seen`. [V] -> [V]."""
    if penalty == 1.0:
        return logits
    scores = logits.copy()
    ids = np.unique(np.fromiter(seen, dtype=np.int64))
    values = scores[ids]
    scores[ids] = np.where(values > 0, values / penalty, values * penalty)
    return scores


def masked(scores: Logits, mask: TokenMask) -> Logits:
    """Scores with minus infinity for every token that `mask` forbids. [V] -> [V]."""
    allowed = np.unpackbits(mask, count=len(scores), bitorder="little").astype(bool)
    out: Logits = np.where(allowed, scores, np.float32(-np.inf))
    return out


def allows(mask: TokenMask, token_id: int) -> bool:
    """Whether `mask` lets this token come."""
    return token_id >> 3 < len(mask) and bool(mask[token_id >> 3] >> (token_id & 7) & 1)


def _counted(scores: Logits, params: SamplingParams, answer: Sequence[int]) -> Logits:
    """logit - count * frequency_penalty - (count > 0) * presence_penalty.

    Source: https://platform.openai.com/docs/guides/text-generation (frequency and presence).
    """
    ids, counts = np.unique(np.fromiter(answer, dtype=np.int64), return_counts=True)
    scores = scores.copy()
    scores[ids] -= (counts * params.frequency_penalty + params.presence_penalty).astype(np.float32)
    return scores


def _biased(scores: Logits, params: SamplingParams) -> Logits:
    """logit + bias. Ids beyond the vocabulary have no logit; both sides refuse them before."""
    ids = np.fromiter(params.logit_bias, dtype=np.int64)
    bias = np.fromiter(params.logit_bias.values(), dtype=np.float32)
    inside = ids < len(scores)
    scores = scores.copy()
    scores[ids[inside]] += bias[inside]
    return scores

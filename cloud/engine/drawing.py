"""What a row's token is drawn with, where the device draws it, and what came of it.

Most sessions need nothing of the logits but a token. On a GPU the logits then stay where they are:
the device draws, and one small copy brings the ids of all rows. Sessions with penalties, a bias, a
grammar or log-probabilities get their logits, and the server draws (`decoding.sampler`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from decoding.params import SamplingParams
from decoding.penalties import looks_back


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """params: the session's. position: that of the token that the first logits row is for; each
    further row is for the next one."""

    params: SamplingParams
    position: int


class Drawn(NamedTuple):
    """Tokens that the device drew, one a logits row. is_finite: whether the rows' hidden states
    and logits all lie within float32's range; else the tokens mean nothing."""

    token_ids: tuple[int, ...]
    is_finite: bool


def device_draws(params: SamplingParams) -> bool:
    """Whether a device can draw with these parameters: nothing but the logits decides."""
    return not (
        looks_back(params)
        or params.logit_bias
        or params.grammar is not None
        or params.logprobs
        or params.prompt_logprobs is not None
    )

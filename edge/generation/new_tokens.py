"""An answer's tokens as the generation yields them."""

from __future__ import annotations

from collections.abc import Sequence

from edge.generation.token_source import NewToken
from protos.messages import Result


def new_tokens(token_ids: Sequence[int], result: Result, at_s: float) -> list[NewToken]:
    """The new tokens of an answer that arrived at `at_s`, with what came beside each."""
    logprobs = result.logprobs or (0.0,) * len(token_ids)
    tops = result.top or ((),) * len(token_ids)
    return [
        NewToken(token_id, logprob, at_s, top)
        for token_id, logprob, top in zip(token_ids, logprobs, tops, strict=True)
    ]

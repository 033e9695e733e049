"""How surprising a token was, as a result carries it: -log P(x_i | x_<i) in one byte."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

STEPS_A_NAT: Final = 16
MOST: Final = 255


def entropy_bytes(logprobs: Iterable[float]) -> bytes:
    """From natural logarithms of probabilities. 15.9 nats and more are the same byte, and so is a
    token that cannot come at all."""
    return bytes(
        round(min(max(-logprob * STEPS_A_NAT, 0.0), MOST)) if math.isfinite(logprob) else MOST
        for logprob in logprobs
    )


def entropies(data: bytes) -> tuple[float, ...]:
    """In nats."""
    return tuple(step / STEPS_A_NAT for step in data)

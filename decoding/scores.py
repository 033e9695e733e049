"""Log-probabilities of tokens: of the chosen one, and of the most likely ones beside it."""

from __future__ import annotations

from typing import NamedTuple


class TopToken(NamedTuple):
    """One of a position's most likely tokens, with its natural-log probability."""

    token_id: int
    logprob: float


class TokenScore(NamedTuple):
    """A token, its natural-log probability, and the most likely tokens of its position.

    The probabilities are the model's own, before temperature, filters, penalties and grammar.
    top: the most likely first, equal ones by id; empty where nobody asked.
    """

    token_id: int
    logprob: float
    top: tuple[TopToken, ...] = ()

"""Log-probabilities of a `Result`, between tuples and the wire's flat lists."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from decoding.params import MAX_TOP_LOGPROBS
from decoding.scores import TopToken
from protos.errors import LocalWireError, RemoteWireError
from protos.limits import MAX_LOGPROB_ERROR


def flat_top(top: Sequence[Sequence[TopToken]]) -> tuple[list[int], list[float]]:
    """Ids and log-probabilities of all positions, one after the other.

    Raises LocalWireError where positions have different numbers of them.
    """
    if len({len(tokens) for tokens in top}) > 1:
        raise LocalWireError("a value the wire cannot carry: positions with more top tokens")
    every = list(itertools.chain.from_iterable(top))
    return [token.token_id for token in every], [token.logprob for token in every]


def top_from_flat(
    token_ids: Sequence[int], logprobs: Sequence[float], num_positions: int
) -> tuple[tuple[TopToken, ...], ...]:
    """The top tokens of each position; empty where the message has none. Raises as `check_top`."""
    check_top(token_ids, logprobs, num_positions)
    return grouped_top(token_ids, logprobs, num_positions) if token_ids else ()


def grouped_top(
    token_ids: Sequence[int], logprobs: Sequence[float], num_positions: int
) -> tuple[tuple[TopToken, ...], ...]:
    """The top tokens of each position, of lists that `check_top` has passed."""
    count = len(token_ids) // max(num_positions, 1)
    pairs = [TopToken(*pair) for pair in zip(token_ids, logprobs, strict=True)]
    return tuple(tuple(pairs[count * at : count * (at + 1)]) for at in range(num_positions))


def check_top(token_ids: Sequence[int], logprobs: Sequence[float], num_positions: int) -> None:
    """Raise RemoteWireError for top tokens that no positions can have.

    They are equally many for each position, at most 20, the most likely first, and none twice.
    """
    if len(token_ids) != len(logprobs):
        raise RemoteWireError("result: as many top log-probabilities as top ids")
    if not token_ids:
        return
    count, rest = divmod(len(token_ids), max(num_positions, 1))
    if rest or not num_positions or count > MAX_TOP_LOGPROBS:
        raise RemoteWireError(
            f"result: {len(token_ids)} top tokens for {num_positions} positions: equally many for "
            f"each, at most {MAX_TOP_LOGPROBS}"
        )
    check_logprobs(logprobs)
    for begin in range(0, len(token_ids), count):
        values = logprobs[begin : begin + count]
        if any(a < b for a, b in itertools.pairwise(values)):
            raise RemoteWireError("result: top tokens come in the order of their probabilities")
        if len(set(token_ids[begin : begin + count])) < count:
            raise RemoteWireError("result: a top token comes twice")


def check_logprobs(values: Sequence[float]) -> None:
    """Raise RemoteWireError unless every value is the logarithm of a probability."""
    if not all(math.isfinite(value) and value <= MAX_LOGPROB_ERROR for value in values):
        raise RemoteWireError("result: log-probabilities must be finite and not above 0")

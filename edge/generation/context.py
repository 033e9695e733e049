"""What happens when a conversation outgrows the plan's tokens: refuse, or go on with a part of it.

`shift` keeps the first tokens (the sink: where a system message begins) and the most recent ones,
and starts a new session with these as its prompt. From there on the answer is, token for token,
what a fresh generation with that prompt gives. Everything in between is forgotten for good.

The idea of keeping first and last tokens is Xiao et al.'s (arXiv:2309.17453). They keep the cached
keys and values and shift positions. We compute them anew. That is exact and needs no support
from the cloud; it costs a prefill of the kept tokens on both sides and on the link. Half of the
plan's tokens are kept, so in the long run each generated token costs about one prefilled token.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from itertools import islice
from typing import Final, Literal

from edge.generation.token_source import FrontSegment, NewToken, OnStep, TokenSource

ContextPolicy = Literal["refuse", "shift"]
CONTEXT_POLICIES: Final[tuple[ContextPolicy, ...]] = ("refuse", "shift")
MAX_SINK_TOKENS: Final = 64
SINK_SHARE: Final = 8
KEPT_SHARE: Final = 2


def kept_tokens(tokens: Sequence[int], capacity: int) -> list[int]:
    """All of `tokens` while one more fits into `capacity`; else the sink and the recent ones."""
    if len(tokens) < capacity:
        return list(tokens)
    num_kept = max(capacity // KEPT_SHARE, 1)
    num_sink = min(MAX_SINK_TOKENS, num_kept // SINK_SHARE)
    return [*tokens[:num_sink], *tokens[len(tokens) - (num_kept - num_sink) :]]


class ShiftingGeneration:
    """A token source without end, made of generations that each fit into `capacity` tokens.

    generation_of(index, max_tokens): makes the index-th generation, for so many tokens in all.
    Each gets `front` with an empty cache. max_new_tokens: of all generations together.
    """

    def __init__(
        self,
        *,
        generation_of: Callable[[int, int], TokenSource],
        front: FrontSegment,
        capacity: int,
        max_new_tokens: int,
    ) -> None:
        self._generation_of = generation_of
        self._front = front
        self._capacity = capacity
        self._max_new_tokens = max_new_tokens
        self._current: TokenSource | None = None
        self._past_reconnects = 0
        self._cancelled = False
        self.shifts = 0

    @property
    def reconnects(self) -> int:
        """Of all generations so far."""
        return self._past_reconnects + (0 if self._current is None else self._current.reconnects)

    def cancel(self) -> None:
        """See TokenSource."""
        self._cancelled = True
        if self._current is not None:
            self._current.cancel()

    def _begin(self, index: int, max_tokens: int) -> TokenSource:
        part = self._current = self._generation_of(index, max_tokens)
        if self._cancelled:  # meanwhile, when it was not there yet to be told
            part.cancel()
        return part

    def tokens(self, prompt_ids: Sequence[int], on_step: OnStep) -> Generator[NewToken, None, None]:
        """Yield new tokens; raises what the generations raise (see RemoteGeneration)."""
        tokens = list(prompt_ids)
        left = self._max_new_tokens
        index = 0
        while left > 0 and not self._cancelled:
            prompt = kept_tokens(tokens, self._capacity)
            self.shifts += len(prompt) < len(tokens)
            count = min(self._capacity - len(prompt), left)
            self._past_reconnects = self.reconnects
            part = self._begin(index, len(prompt) + count)
            self._front.rollback(0)
            with closing(part.tokens(prompt, on_step)) as source:
                for token in islice(source, count):
                    tokens.append(token.token_id)
                    left -= 1
                    yield token
            index += 1

"""Going on when a conversation outgrows the plan's tokens, by a KV policy.

The policy (`optimizer.policy.kv`) says which tokens stay. They become the prompt of a new session.
From there on the answer is, token for token, what a fresh generation with that prompt gives;
everything else is forgotten for good. We compute keys and values anew instead of moving cached
ones. That is exact and needs no support from the cloud; it costs a prefill of the kept tokens on
both sides and on the link.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from itertools import islice

from edge.generation.parts import AnswerParts
from edge.generation.token_source import FrontSegment, NewToken, OnStep, TokenSource
from optimizer.policy.kv.base import KvPolicy


class ShiftingGeneration(AnswerParts):
    """A token source without end, made of generations that each fit into `capacity` tokens.

    generation_of(index, max_tokens, num_prompt): makes the index-th generation, for so many tokens
    in all; the first `num_prompt` of its prompt are no part of the answer. Each gets `front` with
    an empty cache. policy: which tokens stay when `capacity` is reached.
    max_new_tokens: of all generations together.
    """

    def __init__(
        self,
        *,
        generation_of: Callable[[int, int, int], TokenSource],
        front: FrontSegment,
        capacity: int,
        policy: KvPolicy,
        max_new_tokens: int,
    ) -> None:
        super().__init__()
        self._policy = policy
        self._generation_of = generation_of
        self._front = front
        self._capacity = capacity
        self._max_new_tokens = max_new_tokens

    def tokens(self, prompt_ids: Sequence[int], on_step: OnStep) -> Generator[NewToken, None, None]:
        """Yield new tokens; raises what the generations raise (see RemoteGeneration)."""
        tokens = list(prompt_ids)
        left = self._max_new_tokens
        index = 0
        while left > 0 and not self._cancelled:
            kept = self._policy.kept(len(tokens), self._capacity)
            prompt = [tokens[position] for position in kept]
            self.shifts += len(prompt) < len(tokens)
            count = min(self._capacity - len(prompt), left)
            num_prompt = sum(position < len(prompt_ids) for position in kept)
            part = self.begin(self._generation_of(index, len(prompt) + count, num_prompt))
            self._front.rollback(0)
            with closing(part.tokens(prompt, on_step)) as source:
                for token in islice(source, count):
                    tokens.append(token.token_id)
                    left -= 1
                    yield token
            index += 1

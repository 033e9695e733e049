"""Going on in the cloud when the device's cache is full: the split moves to 0.

The first part runs as planned, until the device's cache holds no more. Then the server takes the
whole sequence as token ids and computes the layers that the device had as well. Nothing is
forgotten. Positions, seed and so the random numbers stay the same. A handed-over answer is
therefore that of one run without a limit, as far as both sides hold the same weights: with float32
and the lossless level to the token, else within what the front's rounding changes.

Source: ours. Moving cached keys and values instead is the paper's I_kv (arXiv:2511.04002).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from itertools import islice

from edge.generation.parts import AnswerParts
from edge.generation.token_source import NewToken, OnStep, TokenSource


class HandoverGeneration(AnswerParts):
    """A token source of at most two parts.

    on_device, in_cloud: make a part for so many tokens in all, prompt and output together.
    capacity: tokens that the device's cache holds. max_new_tokens: of both parts.
    """

    def __init__(
        self,
        *,
        on_device: Callable[[int], TokenSource],
        in_cloud: Callable[[int], TokenSource],
        capacity: int,
        max_new_tokens: int,
    ) -> None:
        super().__init__()
        self._on_device = on_device
        self._in_cloud = in_cloud
        self._capacity = capacity
        self._max_new_tokens = max_new_tokens

    def tokens(self, prompt_ids: Sequence[int], on_step: OnStep) -> Generator[NewToken, None, None]:
        """Yield new tokens; raises what the parts raise (see RemoteGeneration)."""
        tokens = list(prompt_ids)
        left = self._max_new_tokens
        here = min(self._capacity - len(tokens), left)
        if here > 0:
            for token in self._part(self._on_device(len(tokens) + here), tokens, here, on_step):
                tokens.append(token.token_id)
                left -= 1
                yield token
        if left > 0 and not self._cancelled:
            self.moves += 1
            yield from self._part(self._in_cloud(len(tokens) + left), tokens, left, on_step)

    def _part(
        self, part: TokenSource, prompt_ids: Sequence[int], count: int, on_step: OnStep
    ) -> Generator[NewToken, None, None]:
        with closing(self.begin(part).tokens(tuple(prompt_ids), on_step)) as source:
            yield from islice(source, count)

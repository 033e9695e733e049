"""An answer that outgrows its cache, where both sides keep the cached rows of some tokens.

It is one generation with one session. `edge.generation.room` decides and does what happens when the
cache is full; this counts it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing

from edge.generation.parts import AnswerParts
from edge.generation.room import RoomMaker
from edge.generation.token_source import NewToken, OnStep, TokenSource


class EvictingGeneration(AnswerParts):
    """See the module's docstring. part: the generation. room: what makes room in its caches.
    max_new_tokens: of the answer."""

    def __init__(self, part: TokenSource, room: RoomMaker, *, max_new_tokens: int) -> None:
        super().__init__()
        self._part = part
        self._room = room
        self._max_new_tokens = max_new_tokens

    def tokens(self, prompt_ids: Sequence[int], on_step: OnStep) -> Generator[NewToken, None, None]:
        """Yield new tokens; raises what the generation raises (see RemoteGeneration)."""
        part = self.begin(self._part)
        left = self._max_new_tokens
        with closing(part.tokens(prompt_ids, on_step)) as source:
            for token in source:
                self.shifts = self._room.num_rounds
                yield token
                left -= 1
                if not left:
                    return

"""An answer that a second model on the device takes over when no server is to be had.

The second model lies wholly on the device and has the same tokenizer. It goes on behind the tokens
that the server has brought, with the same positions, seed and so random numbers. With the first
one's weights it draws the first one's tokens; a smaller model says what a smaller model would.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from itertools import islice
from typing import Final

from edge.errors import (
    BusyError,
    ConnectError,
    DeadlineError,
    InputError,
    LostError,
    TransportError,
)
from edge.generation.device_model import Rest
from edge.generation.parts import AnswerParts
from edge.generation.token_source import NewToken, OnStep, TokenSource

# A server that refuses, or that breaks the protocol, is there: the user has to know.
_AWAY: Final = (LostError, ConnectError, DeadlineError, BusyError)


class FallbackGeneration(AnswerParts):
    """A token source of at most two parts.

    remote: the answer with a server; None: no server is asked. on_device: makes the rest behind the
    tokens so far; InputError where it cannot. max_new_tokens: of both parts.
    """

    def __init__(
        self,
        *,
        remote: TokenSource | None,
        on_device: Callable[[Sequence[int]], Rest],
        max_new_tokens: int,
    ) -> None:
        super().__init__()
        self._remote = remote
        self._on_device = on_device
        self._max_new_tokens = max_new_tokens

    def move_to(self, split: int) -> None:
        """See AnswerParts: the part with a server moves."""
        remote: object = self._remote
        if isinstance(remote, AnswerParts):
            remote.move_to(split)
        else:
            super().move_to(split)

    def tokens(self, prompt_ids: Sequence[int], on_step: OnStep) -> Generator[NewToken, None, None]:
        """Yield new tokens. Raises what a part raises; the loss where the device cannot go on."""
        tokens = list(prompt_ids)
        lost: TransportError | None = None
        if self._remote is not None:
            try:
                yield from self._from_server(self._remote, tokens, on_step)
                return
            except _AWAY as error:
                lost = error
        left = self._max_new_tokens - (len(tokens) - len(prompt_ids))
        if self._cancelled or left <= 0:
            return
        try:
            rest = self._on_device(tokens)
        except InputError as error:
            raise (lost or error) from error
        if lost is not None:
            number = len(tokens) - len(prompt_ids) + 1
            self.detail = f"{lost}; the device's own model answered from token {number} on"
        with closing(self.begin(rest.source).tokens(tuple(tokens), on_step)) as source:
            for token in islice(source, min(left, rest.room)):
                left -= 1
                yield token
        if left > 0 and not self._cancelled:
            if lost is not None:
                raise lost
            self.detail = "the device's own model holds no more tokens"

    def _from_server(
        self, remote: TokenSource, tokens: list[int], on_step: OnStep
    ) -> Generator[NewToken, None, None]:
        """The server's tokens, which are added to `tokens`."""
        try:
            with closing(self.begin(remote).tokens(tuple(tokens), on_step)) as source:
                for token in source:
                    tokens.append(token.token_id)
                    yield token
        finally:
            if isinstance(remote, AnswerParts):
                self.take_counts(remote)

"""What a generation needs of the front, and what a completion needs of a generation."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from decoding.scores import TokenScore, TopToken
from edge.generation.row_span import RowSpan
from edge.step_trace import StepTrace

OnStep = Callable[[StepTrace], None]


class FrontSegment(Protocol):
    """The front of a model with one KV cache (`edge.device.front.FrontEngine` is one)."""

    @property
    def num_tokens(self) -> int:
        """Tokens in the KV cache."""
        ...

    def forward(self, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Append [T] tokens; returns their rows [T, D] (or logits [T, V] of a whole model)."""
        ...

    def rollback(self, num_tokens: int) -> None:
        """Forget every token from `num_tokens` on."""
        ...

    def keep_steps(self, steps: Sequence[Sequence[int]]) -> None:
        """Forget all but the first of these `steps` whose tokens were computed just so."""
        ...


class NewToken(NamedTuple):
    """One token of the answer. `at_s`: its arrival in seconds on the generation's clock.

    top: the most likely tokens of its position, when asked for. prompt_scores: with the first
    token, when asked for: the prompt's tokens from the second on, each with its log-probability.
    """

    token_id: int
    logprob: float
    at_s: float
    top: tuple[TopToken, ...] = ()
    prompt_scores: tuple[TokenScore, ...] = ()


class TokenSource(Protocol):
    """What brings the tokens of one answer: a generation with a cloud or without one."""

    @property
    def reconnects(self) -> int:
        """How many times a broken stream was replaced."""
        ...

    def tokens(self, prompt_ids: Sequence[int], on_step: OnStep) -> Generator[NewToken, None, None]:
        """Yield new tokens; `on_step` gets the trace of every answered frame."""
        ...

    def cancel(self) -> None:
        """End `tokens` soon, from another thread, whatever it is waiting for."""
        ...


def compute_rows(front: FrontSegment, rows: RowSpan) -> npt.NDArray[np.float32]:
    """Run the front on `rows`: float32 [T, D]. Roll its cache back first if drafts were refused."""
    if front.num_tokens > rows.first_position:
        front.rollback(rows.first_position)
    return front.forward(np.asarray(rows.token_ids, dtype=np.int64))

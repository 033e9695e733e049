"""What a drafter asks of a draft head: rows of the model in, states of its own and guesses out.

Letters in shapes: T rows, D the model's width, S = K D the states that the head reads. Position t
of the head reads the model's state of position t beside the embedding of token t + 1, and predicts
token t + 2. So a session of n tokens has n - 1 positions here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from torch import Tensor

from cloud.attention.base import Attend

# float32 [T, D] of T token ids.
Embed: TypeAlias = Callable[[Sequence[int]], Tensor]


class HeadChoices(NamedTuple):
    """The likeliest tokens of each row: ids int64 [T, C], and probabilities float32 [T, C]."""

    token_ids: Tensor
    shares: Tensor


class KvHeads(NamedTuple):
    """What the head's one layer keeps of a token: keys and values of so many heads of `size`."""

    num_heads: int
    size: int


class DraftNetwork(Protocol):
    """See the module's docstring. A new kind of head is a class in a file of its own.

    form: what kind it is. layers: at which of the model's layers its states are taken; L: what the
    last one gives. reads_normed: whether a state of the last one is read behind the model's norm.
    num_bytes: of its weights.
    """

    @property
    def form(self) -> str: ...
    @property
    def layers(self) -> tuple[int, ...]: ...
    @property
    def reads_normed(self) -> bool: ...
    @property
    def kv_heads(self) -> KvHeads: ...
    @property
    def num_bytes(self) -> int: ...

    def run(
        self, states: Tensor, token_ids: Sequence[int], positions: Sequence[int], attend: Attend
    ) -> Tensor:
        """The layer on rows of the model. states: float32 [T, S], of one position each; token_ids:
        [T] the tokens behind these. Returns the head's states [T, D]."""
        ...

    def follow(
        self, own: Tensor, token_ids: Sequence[int], positions: Sequence[int], attend: Attend
    ) -> Tensor:
        """The layer behind guesses: own: [T, D] what it gave for the position before each."""
        ...

    def choices(self, own: Tensor, count: int) -> HeadChoices:
        """The `count` likeliest tokens after each of its states [T, D]."""
        ...

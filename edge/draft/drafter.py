"""What a drafter is: it follows the sequence token by token and guesses the next one.

The generation tells it everything that happens to the sequence: tokens that joined (with the
rows that the front made of them, since those are there anyway) and tokens that were taken back.
Guesses come one at a time, because each needs the front's row of the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]


class Guess(NamedTuple):
    """A guessed token, and how sure the drafter is of it.

    `kind` names the circumstances (say, an 8-token match, or a head that gives 90 %), so that
    the share of guesses of this kind that come true can be measured; `prior` is what that share is
    believed to be before anything was measured.
    """

    token_id: int
    kind: str
    prior: float


class Drafter(Protocol):
    """See the module's docstring. The sequence is empty at first; positions count from 0."""

    def extend(self, token_ids: Sequence[int], rows: Rows | None) -> None:
        """The sequence grew by `token_ids` [T]; `rows` [T, D] are the front's, where it ran."""
        ...

    def rollback(self, num_tokens: int) -> None:
        """Forget every token from position `num_tokens` on."""
        ...

    def guesses(self) -> tuple[Guess, ...]:
        """Likely next tokens of the sequence as it stands, all different, the likeliest first.

        Empty for no idea. Priors of second choices hold when those before them are wrong.
        """
        ...

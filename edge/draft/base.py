"""What a drafter is: it follows the sequence token by token and guesses the next one.

The generation tells the drafter everything that happens to the sequence: tokens that joined (with
the front's rows, since those are there anyway) and tokens that were taken back. Guesses come one at
a time, because each needs the front's row of the one before.

A new kind of drafter is a file of its own with a `DrafterKind`, and one line in the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from optimizer.artifacts.bundle import Bundle
from protos.messages import Drafts

Rows = npt.NDArray[np.float32]


class Guess(NamedTuple):
    """A guessed token, and how sure the drafter is of it.

    `kind` names the circumstances (say, an 8-token match, or a head that gives 90 %). So the share
    of guesses of this kind that come true can be measured. `prior` is what that share is believed
    to be before anything was measured.
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

        Empty for no idea. The prior of an alternative holds when the guesses before it are wrong.
        """
        ...


@runtime_checkable
class HearsCloud(Protocol):
    """A drafter that says what the cloud guesses."""

    def hear(self, drafts: Drafts) -> None:
        """The cloud guesses this."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftResources:
    """What a device has to draft with: its bundle, the folder of a draft model's bundle, that
    model's threads (None: one for each CPU that may be used), and the process's memory limit."""

    bundle: Bundle
    model: Path | None = None
    threads: int | None = None
    memory_limit_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DrafterKind:
    """One kind of drafter, as the registry lists it.

    name: what a request asks for. open: loads once for a device what the drafters share, and
    returns a function that makes a drafter for one generation; None when the device lacks what it
    needs. missing: what to tell a user who asks for it then. in_auto: whether `auto` takes it.
    reads_rows: whether it guesses from the front's rows, which are those of one split.
    """

    name: str
    open: Callable[[DraftResources], Callable[[], Drafter] | None]
    missing: str = ""
    in_auto: bool = False
    reads_rows: bool = False

"""Which drafter a generation gets: by name, from what the bundle holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from edge.draft.drafter import Drafter
from edge.draft.drafting import Drafting
from edge.draft.ngram import NgramDrafter
from edge.errors import InputError

AUTO: Final = "auto"
OFF: Final = "off"
NGRAM: Final = "ngram"
NAMES: Final = (AUTO, OFF, NGRAM)


class DraftChoice:
    """The drafters of one bundle."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def check(self, name: str) -> None:
        """InputError when the bundle has no drafter of this name."""
        if name not in NAMES:
            raise InputError(f"no drafter {name!r}: choose one of {', '.join(NAMES)}")

    def drafting(self, name: str) -> Drafting | None:
        """A new generation's drafting; None for `off`. InputError for a drafter not there.

        `auto` takes the best drafter there is; how much is drafted, down to nothing, is decided
        guess by guess.
        """
        drafter = self._drafter(name)
        return None if drafter is None else Drafting(drafter, clock=self._clock)

    def _drafter(self, name: str) -> Drafter | None:
        self.check(name)
        return None if name == OFF else NgramDrafter()

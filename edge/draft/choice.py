"""Which drafter a generation gets: by name, from what the bundle holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge.draft.acceptance import Acceptance
from edge.draft.best_of import BestOf
from edge.draft.drafter import Drafter
from edge.draft.drafting import Drafting
from edge.draft.head import HEAD_NAME, HeadDrafter, HeadModel
from edge.draft.ngram import NgramDrafter
from edge.errors import InputError

AUTO: Final = "auto"
OFF: Final = "off"
NGRAM: Final = "ngram"
HEAD: Final = "head"
NAMES: Final = (AUTO, OFF, NGRAM, HEAD)


class DraftChoice:
    """The drafters of one bundle. draft_dir: its `draft/`, which need not be there.

    Raises FrontError for a head that cannot be loaded.
    """

    def __init__(self, draft_dir: Path, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._head = HeadModel(draft_dir) if (draft_dir / HEAD_NAME).is_file() else None

    def check(self, name: str) -> None:
        """InputError when the bundle has no drafter of this name."""
        if name not in NAMES:
            raise InputError(f"no drafter {name!r}: choose one of {', '.join(NAMES)}")
        if name == HEAD and self._head is None:
            raise InputError("this bundle has no draft head ('splitpoint train-draft' makes one)")

    def drafting(self, name: str) -> Drafting | None:
        """A new generation's drafting; None for `off`. InputError for a drafter not there.

        `auto` takes all there are; how much is drafted, down to nothing, is decided guess by guess.
        """
        self.check(name)
        if name == OFF:
            return None
        drafters: list[Drafter] = []
        if name in (AUTO, NGRAM):
            drafters.append(NgramDrafter())
        if name in (AUTO, HEAD) and self._head is not None:
            drafters.append(HeadDrafter(self._head))
        acceptance = Acceptance()
        drafter = drafters[0] if len(drafters) == 1 else BestOf(drafters, acceptance)
        return Drafting(drafter, clock=self._clock, acceptance=acceptance)

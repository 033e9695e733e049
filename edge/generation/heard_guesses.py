"""What the cloud guesses, on its way to the drafter: no more of it than answers warrant."""

from __future__ import annotations

from collections.abc import Sequence

from edge.errors import PeerError
from edge.generation.drafting import DraftSelector
from protos.limits import MAX_DRAFT_SOURCES
from protos.messages import Drafts


class HeardGuesses:
    """One generation's. drafting: who listens; None: nobody does.

    A server that sends guesses without end would hold a generation without an answer.
    """

    def __init__(self, drafting: DraftSelector | None) -> None:
        self._drafting = drafting
        self._left = MAX_DRAFT_SOURCES  # messages that may come before the next answer

    def answered(self, drafts: Sequence[Drafts]) -> None:
        """An answer has come, with these guesses; more may follow in messages of their own."""
        self._left = MAX_DRAFT_SOURCES
        self._tell(drafts)

    def hear(self, drafts: Sequence[Drafts]) -> None:
        """Guesses that came in a message of their own. Raises PeerError for too many."""
        self._left -= len(drafts)
        if self._left < 0:
            raise PeerError("the server broke the protocol: guesses without an answer")
        self._tell(drafts)

    def _tell(self, drafts: Sequence[Drafts]) -> None:
        if self._drafting is not None:
            for one in drafts:
                self._drafting.hear(one)

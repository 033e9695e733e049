"""An answer that came while guesses were made. It is kept until the loop takes it."""

from __future__ import annotations

from edge.generation.journal import Journal
from edge.net.transport import Received
from protos.messages import Result


class EarlyAnswer:
    """One generation's. received: the answer; None: none has come."""

    __slots__ = ("received",)

    def __init__(self) -> None:
        self.received: Received | None = None

    def take(self) -> Received | None:
        """The answer, which is kept no longer."""
        received, self.received = self.received, None
        return received

    def stands(self, journal: Journal) -> bool:
        """Whether the answer is what was guessed, so that the frames behind it will run."""
        result = None if self.received is None else self.received.message
        return isinstance(result, Result) and journal.stands(result.sequence, result.token_ids)

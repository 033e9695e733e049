"""The answers of one request, one after another: several prompts, and choices of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from edge.generation.completion import CompletionRun, TextPiece
from edge.generation.report import Completion


class RunEvent(NamedTuple):
    """A piece of one choice; None at the choice's end."""

    choice: int
    piece: TextPiece | None


class AnswerRuns:
    """Runs that share one front, in turn. Iterate once; `cancel` is safe from any thread."""

    def __init__(self, runs: Sequence[CompletionRun]) -> None:
        self.runs = tuple(runs)
        self._cancelled = False

    def cancel(self) -> None:
        """End the run that is under way, and begin no other."""
        self._cancelled = True
        for run in self.runs:
            run.cancel()

    def __iter__(self) -> Iterator[RunEvent]:
        for choice, run in enumerate(self.runs):
            if self._cancelled and choice:
                return
            for piece in run:
                yield RunEvent(choice, piece)
            yield RunEvent(choice, None)

    def completion(self, choice: int) -> Completion:
        """The outcome of a choice that has ended."""
        return self.runs[choice].completion

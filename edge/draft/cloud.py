"""What the cloud guesses, as a drafter: it says on the edge what came down with the answers.

The cloud has the late states of the tokens that it has verified. It guesses the tokens behind its
answer and sends their ids. They hold as long as the sequence goes on as guessed. The edge decides
what to do with them, as with the guesses of any other drafter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from edge.draft.base import Drafter, DrafterKind, DraftResources, Guess, Rows
from protos.messages import DraftChoice, Drafts

LETTERS: Final = "abcdefgh"  # of a guess and its alternatives
CLOUD: Final = "cloud"
# Tokens that the cloud is asked to guess beyond an answer: more than one round trip has brought.
ASKED_DRAFT_IDS: Final = 8
DEEPEST: Final = 3  # guesses further on are one kind


class CloudGuesses:
    """See the module's docstring. Memory: the sequence, and the last message of each source."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._heard: dict[int, Drafts] = {}

    def extend(self, token_ids: Sequence[int], rows: Rows | None) -> None:
        """See Drafter; the rows are not looked at."""
        self._tokens.extend(token_ids)

    def rollback(self, num_tokens: int) -> None:
        """See Drafter."""
        del self._tokens[num_tokens:]

    def hear(self, drafts: Drafts) -> None:
        """The cloud guesses this; what its source said before is forgotten."""
        self._heard[drafts.source] = drafts

    def guesses(self) -> tuple[Guess, ...]:
        """See Drafter. The kind is `cloudS-D-N`: source, depth, confidence in tenths.

        A letter follows for alternatives. N is then the share of what the choices before leave.
        """
        said: list[list[Guess]] = []
        for source, drafts in self._heard.items():
            depth = len(self._tokens) - drafts.first_position
            if not 0 <= depth < len(drafts.choices) or not self._holds(drafts, depth):
                continue
            guesses: list[Guess] = []
            left = 1.0
            for letter, choice in zip(LETTERS, drafts.choices[depth], strict=False):
                guesses.append(_guess(source, min(depth, DEEPEST), letter, choice, left))
                left -= choice.confidence
            said.append(guesses)
        # A source's own order stands: the prior of an alternative holds where its guess is wrong.
        said.sort(key=lambda guesses: -guesses[0].prior)
        found: dict[int, Guess] = {}
        for guess in (*(one[0] for one in said), *(guess for one in said for guess in one[1:])):
            found.setdefault(guess.token_id, guess)
        return tuple(found.values())

    def _holds(self, drafts: Drafts, depth: int) -> bool:
        """Whether the sequence has gone on as guessed so far."""
        said = self._tokens[drafts.first_position :]
        return all(
            token_id == choices[0].token_id
            for token_id, choices in zip(said, drafts.choices[:depth], strict=True)
        )


def _guess(source: int, depth: int, letter: str, choice: DraftChoice, left: float) -> Guess:
    share = choice.confidence / max(left, choice.confidence, 1e-6)
    tenth = min(int(10 * share), 9)
    suffix = "" if letter == LETTERS[0] else letter
    return Guess(choice.token_id, f"cloud{source}-{depth}-{tenth}{suffix}", tenth / 10 + 0.05)


def _open(_: DraftResources) -> Callable[[], Drafter] | None:
    return CloudGuesses


KIND: Final = DrafterKind(name=CLOUD, open=_open, in_auto=True)

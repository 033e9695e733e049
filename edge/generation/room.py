"""Making room in the caches of one answer: which tokens leave, on both sides at once.

A round comes when the cache is full of tokens that both sides have and the next row has no place,
whatever the frames were. The policy says which tokens stay (`optimizer.policy.kv`); the front keeps
them, and the next frame tells the cloud. A replayed session does the same, because its frames carry
what left. Where the policy wants to know how surprising tokens were, the cloud's answers say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from edge.generation.phases import Phase
from edge.generation.session import EdgeSession
from edge.generation.token_source import FrontSegment
from optimizer.policy.kv.base import KvPolicy
from protos.entropy_bytes import entropies
from protos.messages import Frame, Result


class KeepingFront(FrontSegment, Protocol):
    """A front whose tokens may leave its cache."""

    def keep_slots(self, slots: Sequence[int]) -> None:
        """Let all tokens leave the cache but those in these rising places."""
        ...


class DraftedRows(Protocol):
    """What drafting knows of the front's cache (`edge.generation.draft_frames`)."""

    def settle(self, token_ids: Sequence[int]) -> None:
        """Make the front's cache hold these tokens and no others."""
        ...

    def keep_slots(self, slots: Sequence[int]) -> None:
        """All tokens left the front's cache but those in these rising places."""
        ...


class RoomMaker:
    """Of one answer. capacity: tokens that stay in both caches at most. front: this device's."""

    def __init__(self, policy: KvPolicy, *, capacity: int, front: KeepingFront) -> None:
        self._policy = policy
        self._front = front
        self._scores: list[float] = []  # by place: how surprising its token was, in nats
        self.capacity = capacity
        self.num_rounds = 0

    def hear(self, frame: Frame, result: Result) -> None:
        """Note how surprising tokens were: the prompt's of `frame`, and those of its answer."""
        self._note(max(frame.first_position, 1), entropies(result.prompt_entropies))
        drawn = frame.first_position + len(frame.token_ids) - frame.num_drafts
        self._note(drawn, entropies(result.entropies))

    def make(self, session: EdgeSession, drafted: DraftedRows | None) -> bool:
        """Let tokens leave where `session` has no place for its next row.

        False: answers have to come first that say how surprising the tokens were.
        """
        num_tokens = session.num_sent
        if num_tokens < self.capacity or session.phase not in (Phase.PREFILLING, Phase.READY):
            return True
        is_asking = session.phase is Phase.PREFILLING and session.journal.num_outstanding > 0
        if self._policy.needs_scores and is_asking:
            return False
        scores = self._known(num_tokens)
        kept = self._policy.kept(num_tokens, self.capacity, scores)
        if drafted is not None:
            drafted.settle(session.tokens[:num_tokens])
        if self._front.num_tokens > num_tokens:
            self._front.rollback(num_tokens)
        self._front.keep_slots(kept)
        if drafted is not None:
            drafted.keep_slots(kept)
        session.keep_places(kept)
        if self._policy.needs_scores:
            stay = [scores[place] * self._policy.decay for place in kept]
            self._scores = stay + self._scores[num_tokens:]
        self.num_rounds += 1
        return True

    def _known(self, num_tokens: int) -> list[float]:
        if not self._policy.needs_scores:
            return []
        self._scores += [0.0] * (num_tokens - len(self._scores))
        return self._scores[:num_tokens]

    def _note(self, begin: int, scores: Sequence[float]) -> None:
        if scores:
            self._scores += [0.0] * (begin - len(self._scores))
            self._scores[begin : begin + len(scores)] = scores

"""Drafting with a head: for all sessions of a step together, once their answers have left.

First the head reads what has run since (one pass over all rows of all sessions). Then it guesses,
one position a pass for all sessions that still draft. Each guess is the head's likeliest token, and
the head's own state goes on to the next one (EAGLE, arXiv:2401.15077, section 4.1). A session stops
where a further guess is too unlikely to count (`optimizer.policy.cloud_drafts`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from typing import Final

import torch
from torch import Tensor

from cloud.attention.base import Attend
from cloud.attention.packed_step import PackedStep, StepEntry
from cloud.attention.registry import backend_for
from cloud.drafting.draft_network import DraftNetwork
from cloud.drafting.head_session import HeadSession
from cloud.engine.step_drafting import DraftState
from cloud.errors import CloudError
from cloud.kv.pool import KvLease, KvPool
from optimizer.policy.cloud_drafts import DraftLoad
from protos.limits import MAX_DRAFT_IDS
from protos.messages import DraftChoice, Drafts

HEAD_SOURCE: Final = 1
CHOICES: Final = 4  # tokens for each position, the guess among them


class CloudHeadDrafter:
    """See the module's docstring. A StepDrafter; the model thread alone calls `draft`.

    pool: of one layer, for the head's keys and values. norm: the model's last norm, for a head that
    reads normed final states; None: it reads states as they are.
    """

    takes_steps = False

    def __init__(
        self,
        model: DraftNetwork,
        pool: KvPool,
        *,
        norm: Callable[[Tensor], Tensor] | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = model
        self._pool = pool
        self._norm = norm
        self._clock = clock
        self._backend = backend_for(torch.device("cpu"))
        self._load = DraftLoad()

    @property
    def form(self) -> str:
        """What kind of head it is."""
        return self._model.form

    @property
    def num_bytes(self) -> int:
        """Bytes of its weights, and of its keys and values when all are used."""
        return self._model.num_bytes + self._pool.limit_bytes

    def open(self, *, split: int, max_tokens: int, most: int) -> HeadSession | None:
        """For a session that enters at `split`; None where the head cannot draft for it.

        It reads states of layers that the session's edge has, or there is no room for its keys.
        """
        if split > min(self._model.layers) or not most:
            return None
        most = min(most, MAX_DRAFT_IDS)
        try:
            lease = self._pool.lease(split=0, max_tokens=max_tokens + most)
        except CloudError:  # the session goes on without
            return None
        return HeadSession(lease, most)

    def passes(
        self, states: Sequence[DraftState], *, step_s: float
    ) -> Generator[Sequence[Drafts | None]]:
        """See StepDrafter: all of them at once, because its passes are short."""
        yield self.draft(states, step_s=step_s)

    @torch.inference_mode()
    def draft(self, states: Sequence[DraftState], *, step_s: float) -> list[Drafts | None]:
        """Take in what has run, and guess: one answer a state, None where it guesses nothing."""
        self._load.stepped(step_s, self._clock())
        sessions = [state for state in states if isinstance(state, HeadSession)]
        self._read(sessions)
        drafting = [session for session in sessions if session.guesses]
        found = dict(zip(map(id, drafting), self._guess(drafting, step_s), strict=True))
        return [found.get(id(state)) for state in states]

    def _read(self, sessions: Sequence[HeadSession]) -> None:
        """Take in what has run: the head's keys and values of it, and its state of the last."""
        pairs = [(session, session.take_pairs()) for session in sessions]
        pairs = [(session, pair) for session, pair in pairs if pair.token_ids]
        if not pairs:
            return
        states = torch.cat([pair.states for _, pair in pairs])
        if self._norm is not None:
            states = self._norm(states)
        step = _Rows([(session.lease, len(pair.token_ids)) for session, pair in pairs])
        tokens = [token for _, pair in pairs for token in pair.token_ids]
        own = self._model.run(states, tokens, step.positions, step.attend(self._backend))
        step.grow()
        for (session, _), entry in zip(pairs, step.entries, strict=True):
            session.own = own[entry.end - 1 : entry.end]

    def _guess(self, sessions: Sequence[HeadSession], step_s: float) -> list[Drafts | None]:
        """The guesses of each session, one position after the other for all of them together."""
        found: list[list[tuple[DraftChoice, ...]]] = [[] for _ in sessions]
        reach = [1.0] * len(sessions)
        lengths = [session.lease.length for session in sessions]
        active = list(range(len(sessions)))
        own = [session.own for session in sessions]
        while active:
            begun_s = self._clock()
            rows = torch.cat([state for at in active if (state := own[at]) is not None])
            choices = self._model.choices(rows, CHOICES)
            going: list[int] = []
            for row, at in enumerate(active):
                guess = _choices(choices.token_ids[row], choices.shares[row])
                if not math.isfinite(guess[0].confidence):
                    continue  # weights or states beyond float32's range: no guess
                found[at].append(guess)
                reach[at] *= guess[0].confidence
                has_room = len(found[at]) < sessions[at].most
                if has_room and self._load.pays(reach[at], step_s):
                    going.append(at)
            if going:
                step = _Rows([(sessions[at].lease, 1) for at in going])
                kept = [active.index(at) for at in going]
                tokens = [found[at][-1][0].token_id for at in going]
                attend = step.attend(self._backend)
                states = self._model.follow(rows[kept], tokens, step.positions, attend)
                step.grow()
                for row, at in enumerate(going):
                    own[at] = states[row : row + 1]
            self._load.passed(self._clock() - begun_s)
            active = going
        for session, length in zip(sessions, lengths, strict=True):
            session.lease.rollback(length)  # what was guessed is read again once it is true
        return [
            Drafts(first_position=session.end, choices=tuple(guesses), source=HEAD_SOURCE)
            if guesses
            else None
            for session, guesses in zip(sessions, found, strict=True)
        ]


class _Rows:
    """One pass of the head: which rows belong to whom."""

    def __init__(self, parts: Sequence[tuple[KvLease, int]]) -> None:
        self.entries: list[StepEntry] = []
        self.positions: list[int] = []
        end = 0
        for lease, count in parts:
            entry = StepEntry(lease, start=lease.length, begin=end, num_rows=count)
            self.entries.append(entry)
            self.positions.extend(range(entry.start, entry.stop))
            end = entry.end

    def attend(self, backend: Callable[[PackedStep], object]) -> Attend:
        made = backend(PackedStep(self.entries))
        return made.over(self.entries)  # type: ignore[attr-defined, no-any-return]

    def grow(self) -> None:
        """The rows are in the caches now."""
        for entry in self.entries:
            entry.lease.length = entry.stop


def _choices(token_ids: Tensor, shares: Tensor) -> tuple[DraftChoice, ...]:
    return tuple(
        DraftChoice(token_id, share)
        for token_id, share in zip(token_ids.tolist(), shares.tolist(), strict=True)
    )

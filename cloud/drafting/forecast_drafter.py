"""Drafting with the server's own layers on forecast rows: nothing is trained, a guess is a step.

The server has no row of the token that it has just answered with: the device computes it. So the
row is forecast (`codec.levels.row_forecast`). The layers run on it behind the session's own keys
and values, and their likeliest token is the guess. The next guess stands on a forecast from that
one. Afterwards the session's lease is rolled back, so what ran on forecasts is overwritten.

The first pass behind an answer runs the token and all guesses that still stand, in one step, and
corrects them; every further pass adds one guess. A pass takes about as long as a step of the model.
So there is none while frames wait, nor where the next frame is likely to come before its end, and
guesses leave after every pass. Ours.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from cloud.drafting.forecast_session import ForecastSession
from cloud.engine.batch_entry import BatchEntry
from cloud.engine.launches import ForwardEngine
from cloud.engine.step_drafting import DraftState
from cloud.kv.pool import KvLease
from codec.arrays import F32
from codec.ladder import Ladder
from optimizer.policy.cloud_drafts import LEAST_REACH_OF_A_STEP, DraftLoad
from protos.messages import DraftChoice, Drafts

FORECAST_SOURCE: Final = 2
_CHOICES: Final = 4  # tokens for each position, the guess among them
_MOST_STEPS: Final = 1.5  # the longest that a pass is expected to take, in steps of the model


class ForecastDrafter:
    """See the module's docstring. A StepDrafter; the model thread alone calls `passes`."""

    takes_steps = True

    def __init__(
        self, engine: ForwardEngine, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._load = DraftLoad()

    def open(self, lease: KvLease, ladder: Ladder, *, most: int) -> ForecastSession | None:
        """For a session whose frames `ladder` decodes; None where its tables forecast no rows."""
        if ladder.forecast is None or not most:
            return None
        return ForecastSession(lease, ladder.forecast, most, clock=self._clock)

    def passes(
        self, states: Sequence[DraftState], *, step_s: float
    ) -> Generator[Sequence[Drafts | None]]:
        """See StepDrafter."""
        runs = [_Run(state) for state in states if isinstance(state, ForecastSession)]
        try:
            while going := [run for run in runs if run.goes_on(self._pass_s(step_s))]:
                begun_s = self._clock()
                logits = self._engine.forward([run.entry() for run in going])
                for run, found in zip(going, logits, strict=True):
                    run.take(found)
                self._load.passed(self._clock() - begun_s)
                said = {id(run.session): run.drafts() for run in going}
                yield [said.get(id(state)) for state in states]
        finally:
            for run in runs:
                run.roll_back()

    def _pass_s(self, step_s: float) -> float:
        """What a pass is likely to take. One slow pass, such as the first, must not rule out all
        others: then nothing would correct it."""
        return min(self._load.pass_s or step_s, _MOST_STEPS * step_s)


class _Run:
    """One session while it is guessed for."""

    def __init__(self, session: ForecastSession) -> None:
        self.session = session
        self._length = session.lease.length
        self._overflowed = session.lease.overflowed
        self._rows: F32 | None = None  # forecast, and not run yet
        row, room = session.row, session.lease.max_tokens - self._length
        if row is not None and room > 0 and not self._overflowed:
            del session.chain[room - 1 :]
            tokens = [session.token, *(choices[0].token_id for choices in session.chain)]
            self._forecast(tokens, row)

    def goes_on(self, pass_s: float) -> bool:
        """Whether a pass that takes so long is likely to be worth it."""
        session = self.session
        if self._rows is None or not session.messages_left or not session.has_time(pass_s):
            return False
        reach = math.prod(choices[0].confidence for choices in session.chain)
        return len(session.chain) < session.most and reach >= LEAST_REACH_OF_A_STEP

    def entry(self) -> BatchEntry:
        """Its rows as part of a step."""
        rows = self._rows
        if rows is None:
            raise RuntimeError("no rows to run")
        return BatchEntry(
            lease=self.session.lease, rows=torch.from_numpy(rows), num_logits=len(rows)
        )

    def take(self, logits: Tensor) -> None:
        """The layers gave these, [T, V], for its rows."""
        session, rows = self.session, self._rows
        self._rows = None
        if rows is None or session.lease.overflowed or not bool(logits.isfinite().all()):
            return
        found = _choices(logits)
        before = len(session.chain) - len(rows) + 1  # guesses under these rows' first
        said = session.chain[before:]
        # Behind a guess that the row before it refutes nothing holds.
        agreed = next(
            (
                at
                for at, (old, new) in enumerate(zip(said, found, strict=False))
                if old[0].token_id != new[0].token_id
            ),
            len(rows) - 1,
        )
        session.chain[before:] = found[: agreed + 1]
        session.lease.rollback(session.lease.length - (len(rows) - 1 - agreed))
        if session.lease.length < session.lease.max_tokens:
            self._forecast([session.chain[-1][0].token_id], rows[agreed])

    def drafts(self) -> Drafts | None:
        """All guesses so far, as one more message."""
        session = self.session
        if not session.chain:
            return None
        session.messages_left -= 1
        return Drafts(
            first_position=session.end, choices=tuple(session.chain), source=FORECAST_SOURCE
        )

    def roll_back(self) -> None:
        """What ran on forecasts never was: also where it left float32's range."""
        self.session.lease.rollback(self._length)
        self.session.lease.overflowed = self._overflowed

    def _forecast(self, token_ids: Sequence[int], before: F32) -> None:
        rows = self.session.forecast.rows(token_ids, before)
        self._rows = rows if np.isfinite(rows).all() else None


def _choices(logits: Tensor) -> list[tuple[DraftChoice, ...]]:
    """The likeliest tokens of each row of [T, V], with their probabilities."""
    shares, token_ids = torch.softmax(logits.float(), -1).topk(min(_CHOICES, logits.shape[-1]))
    return [
        tuple(DraftChoice(token, share) for token, share in zip(ids, of, strict=True))
        for ids, of in zip(token_ids.tolist(), shares.tolist(), strict=True)
    ]

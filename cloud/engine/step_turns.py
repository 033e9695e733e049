"""Engines that share the cores of one machine take turns: one step of the model at a time.

Two steps at once would have twice as many threads as cores, and both would wait for threads that
the system took off a core. Turns come in the order of asking, so no engine waits for two steps of
another one. A GPU's engines need none: its driver puts steps into an order. Ours.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from torch import Tensor

from cloud.engine.batch_entry import BatchEntry
from cloud.engine.launches import ForwardEngine


class StepTurns:
    """A lock that is given in the order in which it was asked for. A context manager."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._asked = 0
        self._served = 0

    def __enter__(self) -> None:
        with self._changed:
            ticket, self._asked = self._asked, self._asked + 1
            self._changed.wait_for(lambda: self._served == ticket)

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._served += 1
            self._changed.notify_all()


class TurnTakingEngine:
    """A `ForwardEngine` whose steps wait for their turn."""

    def __init__(self, engine: ForwardEngine, turns: StepTurns) -> None:
        self._engine = engine
        self._turns = turns

    def forward(self, batch: Sequence[BatchEntry]) -> list[Tensor]:
        """See ForwardEngine."""
        with self._turns:
            return self._engine.forward(batch)

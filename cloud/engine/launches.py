"""A step on its way: started on a device, its answers collected later.

Between the two the model thread may do other work, such as decoding the frames that came in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from cloud.engine.batch_entry import BatchEntry, FloatRows
from cloud.engine.drawing import Drawn

# Of one entry: float32 logits [num_logits, V], or the tokens where the device drew them.
Answered: TypeAlias = FloatRows | Drawn


class Launch(Protocol):
    """A step that was started. is_done: it has ended already, and nothing can be done meanwhile."""

    @property
    def is_done(self) -> bool: ...

    def result(self) -> list[Answered]:
        """Wait for it. One answer an entry, in the batch's order."""
        ...


class ForwardEngine(Protocol):
    """Runs a batch at once: float32 logits [num_logits, V] of each entry."""

    def forward(self, batch: Sequence[BatchEntry]) -> list[Tensor]: ...


@runtime_checkable
class LaunchingEngine(Protocol):
    """Starts a batch and goes on."""

    def launch(self, batch: Sequence[BatchEntry]) -> Launch:
        """Start a step; every lease grows by its entry's rows at once."""
        ...


class DoneLaunch:
    """A step that ran at once."""

    is_done = True

    def __init__(self, answers: list[Answered]) -> None:
        self._answers = answers

    def result(self) -> list[Answered]:
        """See Launch."""
        return self._answers


def launch(engine: ForwardEngine | LaunchingEngine, batch: Sequence[BatchEntry]) -> Launch:
    """Start `batch`. An engine that only runs forward has finished when this returns."""
    if isinstance(engine, LaunchingEngine):
        return engine.launch(batch)
    return DoneLaunch([logits.cpu().numpy() for logits in engine.forward(batch)])

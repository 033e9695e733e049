"""Who learns from a step: one observer that the loop tells, and the watchers behind it.

The loop tells the observer of every frame that is sent and of every answer. The observer makes the
frame's trace and shows it to each watcher in turn: the level selector, the chunk sizer, the draft
estimator. The caller's `on_step` gets the trace last, with what a watcher decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from edge.generation.pending import ArrivedResult, PendingStep
from edge.generation.token_source import OnStep
from edge.step_trace import StepTrace


class AnsweredStep(NamedTuple):
    """One answered frame, as watchers see it.

    token_ids: the tokens that its answer brought. at_s: when it had arrived. alone: no other frame
    was on its way when this one was sent. step_s: seconds from the front's start (or from the last
    tokens, if these came later) to the arrival: a frame sent ahead also waits for earlier ones.
    """

    trace: StepTrace
    token_ids: tuple[int, ...]
    at_s: float
    alone: bool
    step_s: float

    @property
    def is_prefill(self) -> bool:
        """Whether the frame began within the prompt."""
        return self.trace.phase == "prefill"


class StepWatcher(Protocol):
    """Something that learns from answered steps."""

    def answered(self, step: AnsweredStep) -> str:
        """Learn from one answered step; returns what was decided because of it, or ''."""
        ...


class StepObserver:
    """See the module's docstring. watchers: shown every step, in this order. split: of frames."""

    def __init__(self, watchers: Sequence[StepWatcher], *, split: int = -1) -> None:
        self._watchers = tuple(watchers)
        self._split = split
        self._on_step: OnStep = _ignore
        self._pending: dict[int, PendingStep] = {}
        self._last_tokens_s = 0.0  # when the last tokens had come

    def begin(self, on_step: OnStep) -> None:
        """From now on `on_step` gets the trace of every answered frame."""
        self._on_step = on_step

    def sent(self, sequence: int, pending: PendingStep) -> None:
        """Frame `sequence` is on its way."""
        self._pending[sequence] = pending

    def answered(self, arrived: ArrivedResult, token_ids: tuple[int, ...]) -> None:
        """A frame was answered with `token_ids`.

        A replay makes the cloud answer some frames again; those were seen the first time.
        """
        pending = self._pending.pop(arrived.result.sequence, None)
        if pending is None:
            return
        step = AnsweredStep(
            trace=replace(pending.trace(arrived, len(token_ids)), split=self._split),
            token_ids=token_ids,
            at_s=arrived.at_s,
            alone=pending.alone,
            step_s=arrived.at_s - max(pending.started_s, self._last_tokens_s),
        )
        if token_ids:
            self._last_tokens_s = arrived.at_s
        for watcher in self._watchers:
            if decision := watcher.answered(step):
                step = step._replace(trace=replace(step.trace, decision=decision))
        self._on_step(step.trace)


def _ignore(step: StepTrace) -> None:
    """Nobody asked for traces."""

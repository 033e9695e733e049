"""One observer for all that learn from a step: order, decisions, and answers given twice."""

from __future__ import annotations

import pytest

from edge.generation.pending import ArrivedResult, PendingStep
from edge.generation.row_span import RowSpan
from edge.generation.step_observer import AnsweredStep, StepObserver
from edge.step_trace import StepTrace
from protos.messages import Result


class Watcher:
    """Remembers what it saw; decides what it was told to."""

    def __init__(self, decision: str = "") -> None:
        self.seen: list[AnsweredStep] = []
        self._decision = decision

    def answered(self, step: AnsweredStep) -> str:
        self.seen.append(step)
        return self._decision


def pending(started_s: float, *, is_prefill: bool = False) -> PendingStep:
    return PendingStep(
        rows=RowSpan(3, (1,), 0, True),
        is_prefill=is_prefill,
        started_s=started_s,
        front_s=0.1,
        encode_s=0.1,
        sent_s=started_s + 0.2,
        level="lossless",
        hidden_bytes=1,
        uplink_bytes=2,
        alone=True,
    )


def arrived(sequence: int, at_s: float) -> ArrivedResult:
    return ArrivedResult(Result(sequence=sequence, token_ids=(), num_tokens=0), 1, at_s)


def test_a_later_watcher_and_the_caller_see_what_an_earlier_one_decided() -> None:
    first, second = Watcher("down to q2"), Watcher()
    observer = StepObserver([first, second])
    traces: list[StepTrace] = []
    observer.begin(traces.append)
    observer.sent(0, pending(1.0))
    observer.answered(arrived(0, 2.0), (9,))
    assert first.seen[0].trace.decision == ""
    assert second.seen[0].trace.decision == "down to q2"
    assert [trace.decision for trace in traces] == ["down to q2"]


def test_a_frame_that_is_answered_again_after_a_replay_is_seen_once() -> None:
    watcher = Watcher()
    observer = StepObserver([watcher])
    observer.sent(0, pending(1.0))
    observer.answered(arrived(0, 2.0), (9,))
    observer.answered(arrived(0, 3.0), ())
    observer.answered(arrived(7, 3.0), (9,))  # never sent
    assert len(watcher.seen) == 1


def test_a_frame_sent_ahead_counts_from_the_last_tokens() -> None:
    watcher = Watcher()
    observer = StepObserver([watcher])
    observer.sent(0, pending(1.0))
    observer.sent(1, pending(1.5))
    observer.sent(2, pending(1.6))
    observer.answered(arrived(0, 2.0), (9,))
    observer.answered(arrived(1, 2.5), ())  # void: brings no tokens
    observer.answered(arrived(2, 2.6), (9,))
    assert [step.step_s for step in watcher.seen] == pytest.approx([1.0, 0.5, 0.6])
    assert [step.token_ids for step in watcher.seen] == [(9,), (), (9,)]


def test_watchers_are_told_whether_a_step_belongs_to_the_prompt() -> None:
    watcher = Watcher()
    observer = StepObserver([watcher])
    observer.sent(0, pending(1.0, is_prefill=True))
    observer.sent(1, pending(1.0))
    observer.answered(arrived(0, 2.0), ())
    observer.answered(arrived(1, 2.0), (9,))
    assert [step.is_prefill for step in watcher.seen] == [True, False]

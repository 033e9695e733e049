"""How long a generation waits: the retry policy's limits, and the deadline that shortens them."""

from __future__ import annotations

import numpy as np

from codec.ladder import Ladder
from edge.generation.connector import MIN_TIMEOUT_S
from edge.generation.deadlines import Deadlines
from edge.generation.level_selector import LevelSelector
from optimizer.policy.retry import RetryPolicy
from tests.edge.fakes import WIDTH
from tests.edge.generation.remote import ManualTime

POLICY = RetryPolicy(connect_s=3.0, step_s=60.0, recover_s=40.0)


def selector(deadline_s: float | None = None) -> LevelSelector:
    made = LevelSelector(ladder=Ladder.lossless(WIDTH), levels=("lossless",), deadline_s=deadline_s)
    made.weigh(np.ones((1, WIDTH), np.float32), np.zeros(1, np.int64))
    return made


def deadlines(
    time: ManualTime, deadline_s: float | None = None, policy: RetryPolicy = POLICY
) -> Deadlines:
    return Deadlines(retry_policy=policy, clock=time.clock(), selector=selector(deadline_s))


def test_without_a_deadline_the_policy_alone_says_how_long() -> None:
    limits = deadlines(ManualTime())
    assert limits.connect_s == 3.0
    assert limits.for_answer(has_tokens=True) == (60.0, False)
    assert limits.for_recovery(has_tokens=True).limit_s == 40.0


def test_a_deadline_counts_once_tokens_have_come() -> None:
    stall_s = selector(0.1).stall_s
    assert stall_s is not None
    limits = deadlines(ManualTime(), 0.1)
    assert limits.for_answer(has_tokens=False) == (60.0, False)
    assert limits.for_answer(has_tokens=True) == (stall_s, True)
    assert limits.for_recovery(has_tokens=True).limit_s == min(stall_s, 40.0)


def test_a_policy_shorter_than_the_deadline_keeps_its_own_error() -> None:
    limits = deadlines(ManualTime(), 0.1, RetryPolicy(step_s=0.01))
    assert limits.for_answer(has_tokens=True) == (0.01, False)


def test_the_time_to_recover_counts_from_the_first_loss_until_something_is_answered() -> None:
    time = ManualTime()
    limits = deadlines(time)
    assert limits.for_recovery(has_tokens=True) == (40.0, 40.0, True)
    time.sleep(15.0)
    assert limits.for_recovery(has_tokens=True) == (40.0, 25.0, False)
    time.sleep(30.0)
    assert limits.for_recovery(has_tokens=True).left_s < 0
    limits.answered(is_new=False)  # a replayed answer: nothing has come
    assert limits.for_recovery(has_tokens=True).left_s < 0
    limits.answered(is_new=True)
    assert limits.for_recovery(has_tokens=True) == (40.0, 40.0, True)


def test_a_new_stream_must_answer_within_what_is_left_to_recover() -> None:
    time = ManualTime()
    limits = deadlines(time)
    assert limits.for_answer(has_tokens=True).wait_s == 60.0
    limits.for_recovery(has_tokens=True)
    time.sleep(10.0)
    assert limits.for_answer(has_tokens=True).wait_s == 30.0
    time.sleep(25.0)
    assert limits.for_answer(has_tokens=True).wait_s == 20.0  # half of it at least
    limits.answered(is_new=False)  # it answers: a long replay may take its time
    assert limits.for_answer(has_tokens=True).wait_s == 60.0


def test_without_time_to_recover_an_answer_still_has_a_moment() -> None:
    limits = deadlines(ManualTime(), policy=RetryPolicy(recover_s=0.0))
    limits.for_recovery(has_tokens=True)
    assert limits.for_answer(has_tokens=True).wait_s == MIN_TIMEOUT_S

"""Where a client goes after a failed attempt, how long it waits first, and when it gives up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.policy.retry import (
    MAX_ATTEMPTS,
    ConnectAttempts,
    Failure,
    Recovery,
    Retry,
    RetryPolicy,
)

POLICY = RetryPolicy(first_backoff_s=0.1, max_backoff_s=5.0)


def longest() -> float:
    """The draw that leaves a wait (almost) whole."""
    return 1.0


def never() -> float:
    raise AssertionError("no random number is due")


def after(
    attempts: ConnectAttempts,
    failure: Failure,
    *,
    now_s: float = 0.0,
    num_addresses: int = 3,
    retry_after_s: float = 0.0,
) -> Retry | None:
    return attempts.after(
        failure,
        POLICY,
        num_addresses=num_addresses,
        now_s=now_s,
        deadline_s=10.0,
        draw=longest if failure == "unreachable" else never,
        retry_after_s=retry_after_s,
    )


def test_unreachable_addresses_are_tried_in_turn_with_doubling_waits() -> None:
    attempts, waits, addresses = ConnectAttempts(), [], []
    for _ in range(8):
        retry = after(attempts, "unreachable")
        assert retry is not None
        attempts = retry.attempts
        waits.append(retry.wait_s)
        addresses.append(attempts.next_address)
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    assert addresses == list(range(1, 9))


def test_a_busy_server_says_how_long_to_wait_and_is_no_failure() -> None:
    retry = after(ConnectAttempts(num_failures=2), "busy", retry_after_s=1.5)
    assert retry == Retry(1.5, ConnectAttempts(next_address=1, num_failures=2, num_attempts=1))


def test_a_refusal_leads_to_the_next_address_at_once_and_the_last_one_ends_it() -> None:
    attempts = ConnectAttempts()
    for _ in range(2):
        retry = after(attempts, "refused", now_s=99.0)  # without a look at the clock
        assert retry is not None
        assert retry.wait_s == 0.0
        attempts = retry.attempts
    assert attempts.next_address == 2
    assert after(attempts, "refused") is None
    assert after(ConnectAttempts(), "refused", num_addresses=1) is None


def test_a_wait_that_would_end_too_late_is_not_begun() -> None:
    assert after(ConnectAttempts(), "busy", now_s=9.0, retry_after_s=1.0) is None
    assert after(ConnectAttempts(), "busy", now_s=9.0, retry_after_s=0.9) is not None
    assert after(ConnectAttempts(), "unreachable", now_s=9.95) is None


@pytest.mark.parametrize("said_s", [0.0, 1e-9])
def test_a_busy_server_that_asks_for_no_wait_is_not_asked_without_end(said_s: float) -> None:
    retry = after(ConnectAttempts(), "busy", retry_after_s=said_s)
    assert retry is not None
    assert retry.wait_s == POLICY.first_backoff_s


def test_an_early_loss_counts_as_a_failure_where_progress_forgets_them() -> None:
    attempts = ConnectAttempts(
        next_address=4, num_failures=1, refused=frozenset({0}), num_attempts=7
    )
    lost = attempts.after_early_loss(POLICY, longest)
    assert lost is not None
    assert lost.wait_s == pytest.approx(0.2)
    assert lost.attempts == ConnectAttempts(next_address=5, num_failures=2, num_attempts=8)
    assert attempts.begin() == ConnectAttempts(next_address=4)


def test_an_address_that_refuses_twice_does_not_speak_for_one_that_is_away() -> None:
    """Address 0 is away for a while, address 1 serves another model."""
    attempts = ConnectAttempts()
    for failure in ("unreachable", "refused") * 3:
        retry = after(attempts, failure, num_addresses=2)
        assert retry is not None
        attempts = retry.attempts


@pytest.mark.parametrize("failure", ["busy", "unreachable"])
def test_attempts_without_progress_are_bounded_whatever_the_time(failure: Failure) -> None:
    attempts, count = ConnectAttempts(), 1
    while (retry := after(attempts, failure)) is not None:
        attempts, count = retry.attempts, count + 1
    assert count == MAX_ATTEMPTS
    assert attempts.after_early_loss(POLICY, longest) is None


def test_only_the_first_loss_since_progress_starts_the_time_to_recover() -> None:
    recovery = Recovery().after_loss(5.0).after_loss(9.0)
    assert recovery.left_s(10.0, now_s=12.0) == 3.0
    assert recovery.left_s(10.0, now_s=16.0) < 0
    assert Recovery().left_s(10.0, now_s=99.0) == 10.0


@given(st.integers(1, 5000), st.floats(0, 1, exclude_max=True))
def test_every_backoff_lies_between_half_of_it_and_all_of_it(failures: int, draw: float) -> None:
    whole_s = POLICY.backoff_s(failures, 1.0)
    assert 0.05 <= whole_s / 2 <= POLICY.backoff_s(failures, draw) <= whole_s <= 5.0
    assert whole_s <= POLICY.backoff_s(failures + 1, 1.0)


def test_one_address_of_several_gets_its_share_of_the_time_left() -> None:
    policy = RetryPolicy(attempt_s=4.0)
    assert policy.attempt_limit_s(9.0, 3) == 3.0
    assert policy.attempt_limit_s(9.0, 1) == 4.0

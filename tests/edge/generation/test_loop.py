"""Whatever the link does, the tokens are the ones an undisturbed run gives."""

from __future__ import annotations

import itertools
from itertools import islice

import pytest

from edge.errors import ConnectError, LostError, RefusedError, TransportError
from edge.generation.link_notice import LinkNotice
from edge.generation.loop import RemoteGeneration
from edge.step_trace import StepTrace
from optimizer.policy.retry import Clock, RetryPolicy
from tests.edge.fakes import FakeTransport, expected_tokens, random_faults
from tests.edge.generation.remote import PROMPT, ManualTime, generation


def tokens_of(run: RemoteGeneration, count: int) -> list[int]:
    steps: list[StepTrace] = []
    iterator = run.tokens(PROMPT, steps.append)
    tokens = [token.token_id for token in islice(iterator, count)]
    iterator.close()
    assert [step.sequence for step in steps] == list(range(len(steps)))
    return tokens


def test_an_undisturbed_run_gives_the_models_tokens_and_closes_its_stream() -> None:
    transport = FakeTransport()
    assert tokens_of(generation([transport]), 20) == expected_tokens(PROMPT, 20)
    assert (transport.opens, transport.closed) == (1, 1)


@pytest.mark.parametrize("seed", range(30))
def test_faults_at_random_moments_change_no_token(seed: int) -> None:
    transports = [FakeTransport(fault=random_faults(seed, 0.06)) for _ in range(2)]
    run = generation(transports, retry_policy=RetryPolicy(recover_s=1e6))
    assert tokens_of(run, 40) == expected_tokens(PROMPT, 40)
    assert run.reconnects > 0


def test_a_server_that_stays_away_ends_the_run_after_the_time_granted() -> None:
    answers = iter([None] * 6)

    def fault() -> TransportError | None:
        return next(answers, LostError("cut"))

    time = ManualTime()
    transport = FakeTransport(fault=fault)
    run = generation([transport], time.clock(), RetryPolicy(recover_s=10.0))
    tokens: list[int] = []
    with pytest.raises(LostError, match="no way back within 10 s"):
        tokens.extend(token.token_id for token in run.tokens(PROMPT, lambda step: None))
    assert tokens == expected_tokens(PROMPT, 3)
    assert 5.0 <= time.now_s < 10.0


def test_a_refusing_server_gives_way_to_the_next_and_the_last_refusal_counts() -> None:
    wrong = FakeTransport(open_errors=[RefusedError("another model")])
    right = FakeTransport()
    assert tokens_of(generation([wrong, right]), 5) == expected_tokens(PROMPT, 5)
    with pytest.raises(RefusedError, match="another model"):
        tokens_of(
            generation([FakeTransport(open_errors=[RefusedError("another model")])]),
            5,
        )


def test_a_trace_accounts_for_the_whole_round_trip() -> None:
    times = iter(float(i) for i in range(10_000))
    transport = FakeTransport(clock=lambda: next(times))
    clock = Clock(now=lambda: next(times), sleep=lambda seconds: None)
    run = generation([transport], clock, RetryPolicy(connect_s=1e6))
    steps: list[StepTrace] = []
    iterator = run.tokens(PROMPT, steps.append)
    list(islice(iterator, 4))
    iterator.close()
    assert [step.phase for step in steps] == ["prefill"] * 3 + ["decode"] * 3
    assert [step.num_rows for step in steps] == [4, 4, 2, 1, 1, 1]
    for step in steps:
        assert step.round_trip_s == pytest.approx(step.wire_s + step.cloud_s)
        assert step.front_s == step.encode_s == 1.0


def test_replayed_answers_do_not_restart_the_time_to_recover() -> None:
    """The server answers all it has answered before, and breaks at the next token, every time."""
    heard = itertools.count()
    transport = FakeTransport()

    def fault() -> TransportError | None:
        next(heard)
        frames = transport.clouds[-1].next_sequence if transport.clouds else 0
        return LostError("the step failed") if frames > 5 else None

    transport.fault = fault
    time = ManualTime()
    run = generation([transport], time.clock(), RetryPolicy(recover_s=10.0))
    tokens: list[int] = []
    with pytest.raises(LostError, match="no way back within 10 s"):
        tokens.extend(token.token_id for token in run.tokens(PROMPT, lambda step: None))
    assert tokens == expected_tokens(PROMPT, 3)
    assert 5.0 <= time.now_s <= 10.0
    assert 2 < transport.opens < 20


def test_who_watches_hears_of_the_loss_the_waiting_and_the_return() -> None:
    answers = iter([None] * 6 + [LostError("cut")])
    transport = FakeTransport(fault=lambda: next(answers, None))
    notices: list[LinkNotice] = []

    def note(notice: LinkNotice) -> None:
        if notice.kind == "lost":
            transport.open_errors = [ConnectError("away")]
        notices.append(notice)

    time = ManualTime()
    run = generation([transport], time.clock(), RetryPolicy(recover_s=10.0), on_link=note)
    assert tokens_of(run, 5) == expected_tokens(PROMPT, 5)
    assert [(one.kind, one.address, one.reason) for one in notices] == [
        ("lost", "fake:1", "cut"),
        ("waiting", "fake:1", "away"),
        ("back", "fake:1", ""),
    ]
    assert notices[0].left_s == 10.0
    assert notices[1].wait_s == time.slept_s[0]

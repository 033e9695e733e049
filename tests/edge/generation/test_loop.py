"""Whatever the link does, the tokens are the ones an undisturbed run gives."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from codec.ladder import Ladder
from edge.errors import (
    BusyError,
    ConnectError,
    LostError,
    RefusedError,
    TransportError,
)
from edge.generation.connector import Connector
from edge.generation.level_selector import LevelSelector
from edge.generation.loop import RemoteGeneration
from edge.generation.report import StepTrace
from optimizer.policy.retry import Clock, RetryPolicy
from protos.messages import Open
from tests.edge.fakes import (
    WIDTH,
    FakeFront,
    FakeTransport,
    expected_tokens,
    random_faults,
)

SHA = "0" * 64
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]


class ManualTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept_s: list[float] = []

    def clock(self) -> Clock:
        return Clock(now=lambda: self.now_s, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds


def generation(
    transports: list[FakeTransport],
    time: ManualTime,
    patience: RetryPolicy | None = None,
    *,
    clock: Clock | None = None,
    deadline_s: float | None = None,
) -> RemoteGeneration:
    patience = patience or RetryPolicy()
    ladder = Ladder.lossless(WIDTH)
    clock = clock or time.clock()
    return RemoteGeneration(
        front=FakeFront(),
        ladder=ladder,
        selector=LevelSelector(ladder=ladder, levels=("lossless",), deadline_s=deadline_s),
        connector=Connector(
            request=Open(
                session_id="s",
                model_sha256=SHA,
                split=1,
                hidden_size=WIDTH,
                codec_tables_sha256=SHA,
                max_tokens=100,
            ),
            transports=transports,
            patience=patience,
            clock=clock,
            rng=random.Random(1),
        ),
        chunk_tokens=4,
        patience=patience,
        clock=clock,
    )


def tokens_of(run: RemoteGeneration, count: int) -> list[int]:
    steps: list[StepTrace] = []
    iterator = run.tokens(PROMPT, steps.append)
    tokens = [token.token_id for token in islice(iterator, count)]
    iterator.close()
    assert [step.sequence for step in steps] == list(range(len(steps)))
    return tokens


def test_an_undisturbed_run_gives_the_models_tokens_and_closes_its_stream() -> None:
    transport = FakeTransport()
    assert tokens_of(generation([transport], ManualTime()), 20) == expected_tokens(PROMPT, 20)
    assert (transport.opens, transport.closed) == (1, 1)


def test_the_first_chunk_is_computed_while_the_session_opens() -> None:
    """A server that is busy at first changes nothing: it is computed once."""
    computed: list[int] = []
    errors: list[TransportError | None] = [BusyError("full", retry_after_s=0.1)]

    def fault() -> TransportError | None:
        computed.append(run._front.num_tokens)
        return errors.pop() if errors else None

    run = generation([FakeTransport(fault=fault)], ManualTime())
    assert tokens_of(run, 5) == expected_tokens(PROMPT, 5)
    assert computed[:2] == [4, 4]  # when it was busy, and when it opened


def test_a_server_that_takes_smaller_frames_has_the_first_chunk_computed_again() -> None:
    steps: list[StepTrace] = []
    run = generation([FakeTransport(max_frame_tokens=3)], ManualTime())
    tokens = list(islice(run.tokens(PROMPT, steps.append), 5))
    assert [token.token_id for token in tokens] == expected_tokens(PROMPT, 5)
    assert [step.num_rows for step in steps if step.phase == "prefill"] == [3, 3, 3, 1]


@pytest.mark.parametrize("seed", range(30))
def test_faults_at_random_moments_change_no_token(seed: int) -> None:
    transports = [FakeTransport(fault=random_faults(seed, 0.06)) for _ in range(2)]
    run = generation(transports, ManualTime(), RetryPolicy(recover_s=1e6))
    assert tokens_of(run, 40) == expected_tokens(PROMPT, 40)
    assert run.reconnects > 0


def test_a_server_that_stays_away_ends_the_run_after_the_patience_asked_for() -> None:
    answers = iter([None] * 6)

    def fault() -> TransportError | None:
        return next(answers, LostError("cut"))

    time = ManualTime()
    transport = FakeTransport(fault=fault)
    run = generation([transport], time, RetryPolicy(recover_s=10.0))
    tokens = []
    with pytest.raises(LostError, match="no way back within 10 s"):
        tokens.extend(token.token_id for token in run.tokens(PROMPT, lambda step: None))
    assert tokens == expected_tokens(PROMPT, 3)
    assert 5.0 <= time.now_s < 10.0


def test_knocking_again_backs_off_and_is_spread_by_chance() -> None:
    time = ManualTime()
    transport = FakeTransport(open_errors=[ConnectError("away") for _ in range(5)])
    tokens_of(generation([transport], time, RetryPolicy(connect_s=100)), 2)
    steps = [0.1, 0.2, 0.4, 0.8, 1.6]
    assert len(time.slept_s) == 5
    for slept_s, full_s in zip(time.slept_s, steps, strict=True):
        assert full_s / 2 <= slept_s <= full_s


def test_a_busy_server_is_asked_again_when_it_said() -> None:
    time = ManualTime()
    transport = FakeTransport(open_errors=[BusyError("full", retry_after_s=3.0)])
    tokens_of(generation([transport], time), 2)
    assert time.slept_s == [3.0]


def test_a_busy_server_beyond_our_patience_is_reported_at_once() -> None:
    time = ManualTime()
    transport = FakeTransport(open_errors=[BusyError("full", retry_after_s=30.0)])
    with pytest.raises(BusyError, match="full"):
        tokens_of(generation([transport], time, RetryPolicy(connect_s=10)), 2)
    assert time.slept_s == []


def test_a_refusing_server_gives_way_to_the_next_and_the_last_refusal_counts() -> None:
    wrong = FakeTransport(open_errors=[RefusedError("another model")])
    right = FakeTransport()
    assert tokens_of(generation([wrong, right], ManualTime()), 5) == expected_tokens(PROMPT, 5)
    with pytest.raises(RefusedError, match="another model"):
        tokens_of(
            generation([FakeTransport(open_errors=[RefusedError("another model")])], ManualTime()),
            5,
        )


def test_a_trace_accounts_for_the_whole_round_trip() -> None:
    times = iter(float(i) for i in range(10_000))
    transport = FakeTransport(clock=lambda: next(times))
    clock = Clock(now=lambda: next(times), sleep=lambda seconds: None)
    run = generation([transport], ManualTime(), RetryPolicy(connect_s=1e6), clock=clock)
    steps: list[StepTrace] = []
    iterator = run.tokens(PROMPT, steps.append)
    list(islice(iterator, 4))
    iterator.close()
    assert [step.phase for step in steps] == ["prefill"] * 3 + ["decode"] * 3
    assert [step.num_rows for step in steps] == [4, 4, 2, 1, 1, 1]
    for step in steps:
        assert step.round_trip_s == pytest.approx(step.wire_s + step.cloud_s)
        assert step.front_s == step.encode_s == 1.0

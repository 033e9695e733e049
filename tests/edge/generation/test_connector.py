"""Opening streams: backoff, busy and refusing servers, other addresses, and the time limit."""

from __future__ import annotations

import random

import pytest

from edge.errors import (
    BusyError,
    ConnectError,
    InputError,
    LostError,
    MisconfiguredError,
    PeerError,
    RefusedError,
    TransportError,
)
from edge.generation.connector import CANCEL_WITHIN_S, Connector
from edge.generation.session import EdgeSession
from edge.net.transport import Stream
from optimizer.policy.retry import MAX_ATTEMPTS, Clock, RetryPolicy
from protos.messages import Frame
from protos.prefix import begin_chain, extend_chain
from tests.edge.fakes import FakeTransport
from tests.edge.generation.remote import ManualTime, connector, open_request


def session() -> EdgeSession:
    return EdgeSession([1, 2, 3], chunk_tokens=4)


def connect(
    transports: list[FakeTransport],
    time: ManualTime,
    timeout_s: float = 100.0,
    *,
    retry_policy: RetryPolicy | None = None,
    wait_first: bool = False,
) -> None:
    made = connector(transports, time.clock(), retry_policy)
    made.connect(session(), timeout_s, wait_first=wait_first)


def test_attempts_back_off_and_are_spread_by_chance() -> None:
    time = ManualTime()
    connect([FakeTransport(open_errors=[ConnectError("away") for _ in range(5)])], time)
    assert len(time.slept_s) == 5
    for slept_s, full_s in zip(time.slept_s, [0.1, 0.2, 0.4, 0.8, 1.6], strict=True):
        assert full_s / 2 <= slept_s <= full_s


def test_the_backoff_has_an_upper_limit() -> None:
    time = ManualTime()
    policy = RetryPolicy(first_backoff_s=0.1, max_backoff_s=0.3)
    errors: list[TransportError] = [ConnectError("away") for _ in range(9)]
    connect([FakeTransport(open_errors=errors)], time, retry_policy=policy)
    assert all(0.15 <= slept_s <= 0.3 for slept_s in time.slept_s[2:])


def test_a_busy_server_is_asked_again_when_it_said() -> None:
    time = ManualTime()
    connect([FakeTransport(open_errors=[BusyError("full", retry_after_s=3.0)])], time)
    assert time.slept_s == [3.0]


def test_a_busy_server_beyond_the_time_limit_is_reported_at_once() -> None:
    time = ManualTime()
    busy = FakeTransport(open_errors=[BusyError("full", retry_after_s=30.0)])
    with pytest.raises(BusyError, match="full"):
        connect([busy], time, 10.0)
    assert time.slept_s == []


def test_an_error_of_ours_while_the_session_opens_closes_it() -> None:
    """Else the cloud would keep it for somebody who does not come back."""

    def broken(stream: Stream) -> None:
        raise InputError("an unknown token")

    server = FakeTransport()
    with pytest.raises(InputError):
        connector([server], ManualTime().clock()).connect(session(), 10.0, meanwhile=broken)
    assert (server.opens, server.closed) == (1, 1)


def test_a_refusing_server_gives_way_to_the_next_at_once() -> None:
    time = ManualTime()
    right = FakeTransport()
    connect([FakeTransport(open_errors=[RefusedError("another model")]), right], time)
    assert (right.opens, time.slept_s) == (1, [0.0])


def test_when_every_server_refuses_the_last_refusal_is_the_answer() -> None:
    with pytest.raises(RefusedError, match="second"):
        connect(
            [
                FakeTransport(open_errors=[RefusedError("first")]),
                FakeTransport(open_errors=[RefusedError("second")]),
            ],
            ManualTime(),
        )


def test_after_a_loss_the_same_address_comes_first_unless_it_brought_nothing() -> None:
    for wait_first, opens in ((False, [2, 0]), (True, [1, 1])):
        time = ManualTime()
        transports = [FakeTransport(), FakeTransport()]
        made = connector(transports, time.clock())
        lost = session()
        made.connect(lost, 10.0)
        lost.lost()
        made.connect(lost, 10.0, wait_first=wait_first)
        assert [transport.opens for transport in transports] == opens
        assert bool(time.slept_s) is wait_first


def test_every_attempt_tells_a_balancer_the_same_and_the_server_that_was_named_last() -> None:
    transport = FakeTransport(open_errors=[BusyError("full", retry_after_s=0.1)])
    made = connector([transport], ManualTime().clock())
    opened = session()
    made.connect(opened, 10.0)
    first, second = transport.routes
    assert first is second
    assert first is not None
    assert len(first.prefix_hash) == 32
    first.heard((("x-replica", "r2"),))
    assert made.replica == "r2"


def test_a_cancelled_connector_makes_no_second_attempt() -> None:
    time = ManualTime()
    transport = FakeTransport(open_errors=[ConnectError("away") for _ in range(5)])
    made = connector([transport], time.clock())
    made.cancel()
    with pytest.raises(ConnectError, match="away"):
        made.connect(session(), 100.0)
    assert transport.opens == 1


def test_a_wait_between_attempts_ends_soon_after_it_was_cancelled() -> None:
    transport = FakeTransport(open_errors=[ConnectError("away") for _ in range(5)])
    slept_s: list[float] = []

    def sleep(seconds: float) -> None:
        slept_s.append(seconds)
        made.cancel()

    made = Connector(
        request=open_request(),
        transports=[transport],
        retry_policy=RetryPolicy(first_backoff_s=4.0),
        clock=Clock(now=lambda: 0.0, sleep=sleep),
        rng=random.Random(1),
    )
    with pytest.raises(ConnectError, match="away"):
        made.connect(session(), 100.0)
    assert (transport.opens, slept_s) == (1, [CANCEL_WITHIN_S])


def test_work_meanwhile_is_done_before_the_answer_is_waited_for() -> None:
    order: list[str] = []

    def fault() -> TransportError | None:
        order.append("receive")
        return None

    made = connector([FakeTransport(fault=fault)], ManualTime().clock())
    made.connect(session(), 10.0, meanwhile=lambda stream: order.append("work"))
    assert order == ["work", "receive"]


def test_a_stream_is_dropped_when_the_work_meanwhile_fails() -> None:
    transport = FakeTransport()

    def fail(stream: Stream) -> None:
        raise LostError("stop")

    made = connector([transport], ManualTime().clock())
    with pytest.raises(LostError, match="stop"):
        made.connect(session(), 0.0, meanwhile=fail)


def test_known_frames_of_the_prompt_are_announced_by_hash() -> None:
    transport = FakeTransport()
    frames = [
        Frame(sequence=0, first_position=0, token_ids=(1, 2), hidden=b"a", want_token=False),
        Frame(sequence=1, first_position=2, token_ids=(3,), hidden=b"b", want_token=True),
    ]
    known = EdgeSession([1, 2, 3, 4, 5], chunk_tokens=4, known=frames)
    connector([transport], ManualTime().clock()).connect(known, 10.0)
    (request,) = transport.requests
    chain = extend_chain(begin_chain(open_request()), frames[0])
    assert request.prefix_hashes == (chain,)  # the frame that asks for a token is no prefix
    assert request.shareable_tokens == 5


def test_the_backoff_goes_on_over_all_attempts_without_progress() -> None:
    time = ManualTime()
    made = connector([FakeTransport()], time.clock())
    lost = session()
    made.connect(lost, 10.0)
    for _ in range(5):
        lost.lost()
        made.connect(lost, 100.0, wait_first=True)
    for slept_s, full_s in zip(time.slept_s, [0.1, 0.2, 0.4, 0.8, 1.6], strict=True):
        assert full_s / 2 <= slept_s <= full_s
    lost.lost()
    made.connect(lost, 10.0)  # after progress
    assert len(time.slept_s) == 5


def test_attempts_without_progress_have_an_end_however_long_the_time() -> None:
    time = ManualTime()
    policy = RetryPolicy(first_backoff_s=0.0, max_backoff_s=0.0)
    transport = FakeTransport()
    made = connector([transport], time.clock(), policy)
    lost = session()
    made.connect(lost, 10.0)
    for _ in range(MAX_ATTEMPTS - 1):
        lost.lost()
        made.connect(lost, 1e9, wait_first=True)
    lost.lost()
    with pytest.raises(LostError, match=f"given up after {MAX_ATTEMPTS} attempts"):
        made.connect(lost, 1e9, wait_first=True)
    assert transport.opens == MAX_ATTEMPTS


@pytest.mark.parametrize("kind", [PeerError, MisconfiguredError, RefusedError])
def test_an_address_that_cannot_work_gives_way_to_the_next_at_once(
    kind: type[TransportError],
) -> None:
    time = ManualTime()
    right = FakeTransport()
    connect([FakeTransport(open_errors=[kind("no")]), right], time)
    assert (right.opens, time.slept_s) == (1, [0.0])
    with pytest.raises(kind, match="no"):
        connect([FakeTransport(open_errors=[kind("no")])], time)

"""The prompt's first frames leave with the Open: what they save, and what undoes them."""

from __future__ import annotations

from itertools import islice

import numpy as np
import numpy.typing as npt
import pytest

from edge.errors import BusyError, ConnectError, RefusedError, SessionError, TransportError
from edge.generation.loop import RemoteGeneration
from edge.generation.prefill_planner import PrefillChoice, PrefillPlanner
from edge.generation.session import EdgeSession
from edge.step_trace import StepTrace
from tests.edge.fakes import FakeFront, FakeTransport, expected_tokens
from tests.edge.generation.remote import PROMPT, ManualTime, connector, generation

FAR = 100  # polls without an answer: longer than the prompt takes


def tokens_of(run: RemoteGeneration, count: int = 5) -> tuple[list[int], list[StepTrace]]:
    steps: list[StepTrace] = []
    iterator = run.tokens(PROMPT, steps.append)
    tokens = [token.token_id for token in islice(iterator, count)]
    iterator.close()
    return tokens, steps


def in_cloud() -> PrefillChoice:
    planner = PrefillPlanner(split=1, num_layers=4, chunk_tokens=4)
    return PrefillChoice(planner, "cloud", split=1)


def test_the_whole_prompt_leaves_before_the_session_is_open() -> None:
    transport = FakeTransport(quiet_polls=FAR)
    sent_first: list[int] = []

    def fault() -> None:
        sent_first.append(len(transport.streams[0].sent))

    transport.fault = fault
    tokens, _ = tokens_of(generation([transport]))
    assert tokens == expected_tokens(PROMPT, 5)
    assert sent_first[0] == 3  # frames of four rows, sent when Opened was taken


def test_frames_stop_when_the_answer_to_the_open_has_come() -> None:
    transport = FakeTransport(quiet_polls=1)
    tokens, steps = tokens_of(generation([transport]))
    assert tokens == expected_tokens(PROMPT, 5)
    assert [step.num_rows for step in steps if step.phase == "prefill"] == [4, 4, 2]


@pytest.mark.parametrize("error", [BusyError("full", retry_after_s=0.1), ConnectError("away")])
def test_a_server_that_opens_at_the_second_attempt_gets_the_same_frames(
    error: TransportError,
) -> None:
    front = FakeFront()
    transport = FakeTransport(quiet_polls=FAR, errors_at_open=[error])
    tokens, steps = tokens_of(generation([transport], front=front))
    assert tokens == expected_tokens(PROMPT, 5)
    first, second = transport.streams
    assert second.sent[: len(first.sent)] == first.sent
    assert [step.sequence for step in steps] == list(range(len(steps)))


def test_the_next_address_gets_the_frames_that_the_first_one_refused() -> None:
    refusing = FakeTransport(quiet_polls=FAR, errors_at_open=[RefusedError("another model")])
    right = FakeTransport(quiet_polls=FAR)
    tokens, _ = tokens_of(generation([refusing, right]))
    assert tokens == expected_tokens(PROMPT, 5)
    assert right.streams[0].sent[:3] == refusing.streams[0].sent


@pytest.mark.parametrize("quiet_polls", [0, 1, FAR])
def test_a_server_that_takes_smaller_frames_has_them_made_again(quiet_polls: int) -> None:
    transport = FakeTransport(max_frame_tokens=3, quiet_polls=quiet_polls)
    tokens, steps = tokens_of(generation([transport]))
    assert tokens == expected_tokens(PROMPT, 5)
    assert [step.num_rows for step in steps if step.phase == "prefill"][-4:] == [3, 3, 3, 1]
    assert transport.opens == (1 if quiet_polls == 0 else 2)
    assert transport.closed == transport.opens


@pytest.mark.parametrize(("token_rows", "kinds"), [(0, {False}), (100, {True})])
def test_ids_go_early_too_and_become_rows_where_the_server_takes_none(
    token_rows: int, kinds: set[bool]
) -> None:
    transport = FakeTransport(token_rows=token_rows, quiet_polls=FAR)
    tokens, _ = tokens_of(generation([transport], prefill=in_cloud()))
    assert tokens == expected_tokens(PROMPT, 5)
    prompt = [frame for frame in transport.streams[-1].sent if frame.first_position < len(PROMPT)]
    assert {frame.is_tokens for frame in prompt} == kinds
    assert transport.opens == (1 if token_rows else 2)


def test_frames_of_an_open_session_cannot_be_taken_back() -> None:
    session = EdgeSession(PROMPT, chunk_tokens=4)
    session.open()
    session.sent(session.next_chunk(), b"x")
    session.opened()
    assert not session.must_withdraw(max_frame_tokens=1, token_rows=0)
    with pytest.raises(SessionError, match="cannot be taken back"):
        session.withdraw()


def test_the_frames_of_a_lost_open_are_unsent_and_those_of_this_stream_are_not() -> None:
    session = EdgeSession(PROMPT, chunk_tokens=16)
    session.open()
    frame = session.sent(session.next_chunk(), b"x")
    session.lost()
    session.open()
    session.opened()
    assert session.unsent() == [frame]
    assert session.unsent() == []


def test_frames_that_were_taken_back_leave_their_session_id_behind() -> None:
    transport = FakeTransport(max_frame_tokens=3, quiet_polls=FAR)
    tokens_of(generation([transport]))
    first, second = transport.requests
    assert first.session_id != second.session_id


def test_the_time_that_the_front_takes_is_not_time_without_a_server() -> None:
    time = ManualTime()

    class SlowFront(FakeFront):
        def forward(self, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
            time.now_s += 60
            return super().forward(token_ids)

    away = FakeTransport(quiet_polls=1, errors_at_open=[ConnectError("away")])
    there = FakeTransport(quiet_polls=FAR)
    tokens, _ = tokens_of(generation([away, there], time.clock(), front=SlowFront()))
    assert tokens == expected_tokens(PROMPT, 5)


def test_cancelling_ends_the_work_behind_an_open() -> None:
    runs: list[RemoteGeneration] = []

    class CancellingFront(FakeFront):
        def forward(self, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
            runs[0].cancel()
            return super().forward(token_ids)

    transport = FakeTransport(quiet_polls=FAR)
    runs.append(generation([transport], front=CancellingFront()))
    assert tokens_of(runs[0])[0] == []
    assert len(transport.streams[0].sent) == 1
    assert transport.closed == 1


def test_a_beginning_that_leaves_out_token_frames_is_not_named_once_they_were_sent() -> None:
    """The server takes no token frames behind other sessions' frames: it would never open."""
    session = EdgeSession(PROMPT, chunk_tokens=4)
    session.granted(8)
    session.send_as_ids(8)
    session.max_frame_tokens = 4
    session.open()
    for _ in range(2):
        session.sent(session.next_chunk(), b"")
    session.opened()
    session.lost()
    request = connector([FakeTransport()], ManualTime().clock())._with_prefix_hashes(session)
    assert len(request.prefix_hashes) == 1

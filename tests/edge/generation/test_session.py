"""The session's table: what may follow what, and what an answer is allowed to be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge.errors import SessionError
from edge.generation.phases import TRANSITIONS, Event, Phase
from edge.generation.session import MAX_REPEATED, EdgeSession
from protos.messages import Result


def answer(sequence: int, *tokens: int) -> Result:
    return Result(sequence=sequence, token_ids=tokens, num_tokens=0)


def take(session: EdgeSession, result: Result) -> tuple[int, ...]:
    """Take the answer with the number of tokens that an honest server's cache then holds."""
    frames = session.journal.frames
    frame = frames[min(result.sequence, len(frames) - 1)]
    end = frame.first_position + len(frame.token_ids)
    if result.token_ids:
        end += len(result.token_ids) - 1 - frame.num_drafts
    return session.received(replace(result, num_tokens=end))


def opened_session(prompt: list[int], chunk_tokens: int = 4) -> EdgeSession:
    session = EdgeSession(prompt, chunk_tokens=chunk_tokens)
    session.open()
    session.opened()
    return session


def send(session: EdgeSession, drafts: tuple[int, ...] = ()) -> int:
    rows = session.next_rows(drafts)
    assert rows is not None
    return session.sent(rows, b"x").sequence


def test_a_prompt_is_cut_into_chunks_and_only_the_last_asks_for_a_token() -> None:
    session = opened_session(list(range(10)), chunk_tokens=4)
    frames = []
    while (rows := session.next_rows()) is not None:
        frames.append(session.sent(rows, b""))
    assert [(f.first_position, f.token_ids, f.want_token) for f in frames] == [
        (0, (0, 1, 2, 3), False),
        (4, (4, 5, 6, 7), False),
        (8, (8, 9), True),
    ]
    assert session.phase is Phase.WAITING


def test_decoding_sends_each_token_at_its_own_position() -> None:
    session = opened_session([1, 2, 3])
    send(session)
    assert take(session, answer(0, 9)) == (9,)
    rows = session.next_rows()
    assert rows is not None
    assert (rows.first_position, rows.token_ids, rows.want_token) == (3, (9,), True)


def test_refused_drafts_are_sent_again_as_the_corrected_token() -> None:
    session = opened_session([1, 2, 3])
    send(session)
    take(session, answer(0, 9))
    send(session, (10, 11, 12))
    assert take(session, answer(1, 10, 77)) == (10, 77)  # one accepted, then a correction
    assert session.tokens == [1, 2, 3, 9, 10, 77]
    rows = session.next_rows()
    assert rows is not None
    assert (rows.first_position, rows.token_ids) == (5, (77,))


def test_all_drafts_accepted_bring_a_bonus_token() -> None:
    session = opened_session([1, 2, 3])
    send(session)
    take(session, answer(0, 9))
    send(session, (10, 11))
    assert take(session, answer(1, 10, 11, 12)) == (10, 11, 12)
    rows = session.next_rows()
    assert rows is not None
    assert (rows.first_position, rows.token_ids) == (6, (12,))


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        ((), "has 0 tokens"),
        ((10, 11, 12), "has 3 tokens"),
        ((99, 5), "drafts that were not sent"),
    ],
)
def test_an_answer_that_does_not_fit_the_question_is_refused(
    tokens: tuple[int, ...], reason: str
) -> None:
    session = opened_session([1, 2, 3])
    send(session)
    take(session, answer(0, 9))
    send(session, (10,))
    with pytest.raises(SessionError, match=reason):
        take(session, answer(1, *tokens))


def test_an_answer_out_of_turn_is_refused() -> None:
    session = opened_session([1, 2, 3])
    send(session)
    with pytest.raises(SessionError, match="answer 1 does not belong"):
        take(session, answer(1, 9))


def send_ahead(session: EdgeSession, *guesses: int) -> int:
    rows = session.rows_ahead(guesses)
    assert rows is not None
    return session.sent(rows, b"x").sequence


def decoding_session() -> EdgeSession:
    session = opened_session([1, 2, 3])
    send(session)
    take(session, answer(0, 9))
    return session


def test_a_frame_sent_ahead_continues_where_the_drafts_end() -> None:
    session = decoding_session()
    send(session, (10, 11))
    rows = session.rows_ahead((12, 13))
    assert rows is not None
    assert (rows.first_position, rows.token_ids, rows.num_drafts) == (6, (12, 13), 1)
    assert rows.ahead
    session.sent(rows, b"x")
    assert take(session, answer(1, 10, 11, 12)) == (10, 11, 12)
    assert session.phase is Phase.WAITING  # for the frame that was sent ahead, rightly
    assert take(session, answer(2, 13, 14)) == (13, 14)
    assert session.tokens == [1, 2, 3, 9, 10, 11, 12, 13, 14]
    rows = session.next_rows()
    assert rows is not None
    assert (rows.first_position, rows.token_ids) == (8, (14,))


@pytest.mark.parametrize("told", [(10, 11, 77), (10, 66), (55,)])
def test_a_wrong_guess_voids_everything_behind_it_and_the_session_goes_on_at_once(
    told: tuple[int, ...],
) -> None:
    session = decoding_session()
    send(session, (10, 11))
    send_ahead(session, 12, 13)
    send_ahead(session, 14)
    assert take(session, answer(1, *told)) == told
    rows = session.next_rows((20,))  # before the void frames have been answered
    assert rows is not None
    assert (rows.first_position, rows.token_ids) == (3 + len(told), (told[-1], 20))
    session.sent(rows, b"x")
    assert take(session, answer(2)) == ()
    assert take(session, answer(3)) == ()
    assert take(session, answer(4, 20, 21)) == (20, 21)
    assert session.tokens == [1, 2, 3, 9, *told, 20, 21]


def test_a_void_frame_must_not_bring_tokens_and_a_standing_one_must() -> None:
    for told, then, reason in (((77,), (13,), "nobody asked"), ((10, 12), (), "has 0 tokens")):
        session = decoding_session()
        send(session, (10,))
        send_ahead(session, 12)
        take(session, answer(1, *told))
        with pytest.raises(SessionError, match=reason):
            take(session, answer(2, *then))


def test_nothing_is_sent_ahead_unless_an_answer_is_outstanding() -> None:
    session = decoding_session()
    assert session.rows_ahead((1,)) is None
    send(session)
    assert session.rows_ahead(()) is None
    assert session.rows_ahead((1,)) is not None


def test_a_replay_lets_void_frames_fall_again_and_settles_what_was_guessed() -> None:
    session = decoding_session()
    send(session, (10,))
    send_ahead(session, 12)
    take(session, answer(1, 77))
    send(session)  # 77, and then a frame ahead that will stand
    send_ahead(session, 30)
    send_ahead(session, 31)
    take(session, answer(2))
    take(session, answer(3, 30))
    session.lost()
    session.open()
    session.opened()
    assert [(f.sequence, f.ahead, f.want_token) for f in session.replay()] == [
        (0, False, False),
        (1, False, False),
        (2, True, True),  # void: falls, as no answer comes before it
        (3, False, False),
        (4, False, True),  # its guess was right, and the answer that said so is not repeated
        (5, True, True),
    ]


def test_a_replay_asks_for_tokens_only_where_no_answer_has_come() -> None:
    session = opened_session(list(range(6)), chunk_tokens=4)
    send(session), send(session)
    take(session, answer(0))
    take(session, answer(1, 20))
    send(session, (21, 22))
    session.lost()
    session.open()
    session.opened()
    assert session.phase is Phase.WAITING
    assert [(f.sequence, f.want_token, f.num_drafts) for f in session.replay()] == [
        (0, False, 0),
        (1, False, 0),
        (2, True, 2),
    ]
    assert take(session, answer(0)) == ()
    assert take(session, answer(1)) == ()
    assert take(session, answer(2, 21, 5)) == (21, 5)


def test_a_session_lost_while_prefilling_goes_on_prefilling() -> None:
    session = opened_session(list(range(6)), chunk_tokens=4)
    send(session)
    session.lost()
    session.open()
    session.opened()
    assert [f.sequence for f in session.replay()] == [0]
    rows = session.next_rows()
    assert rows is not None
    assert rows.first_position == 4


def test_every_event_outside_the_table_is_an_error() -> None:
    calls = {
        Event.OPEN: EdgeSession.open,
        Event.OPENED: EdgeSession.opened,
        Event.LOST: EdgeSession.lost,
        Event.FINISH: EdgeSession.finish,
    }
    for phase in Phase:
        for event, call in calls.items():
            session = EdgeSession([1], chunk_tokens=4)
            session._phase = phase
            if (phase, event) in TRANSITIONS:
                call(session)
            else:
                with pytest.raises(SessionError, match=f"{event.name} is not possible"):
                    call(session)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(SessionError, match="no tokens"):
        EdgeSession([], chunk_tokens=4)


def test_answers_that_repeat_what_is_known_are_few_or_an_error() -> None:
    session = opened_session(list(range(6)), chunk_tokens=4)
    send(session), send(session)
    take(session, answer(0))
    for _ in range(MAX_REPEATED):
        assert take(session, answer(0)) == ()
    with pytest.raises(SessionError, match="answer 0 does not belong"):
        take(session, answer(0))


def test_after_a_replay_each_frame_is_answered_once_and_in_order() -> None:
    session = opened_session(list(range(6)), chunk_tokens=4)
    send(session), send(session)
    take(session, answer(0))
    session.lost()
    session.open()
    session.opened()
    assert len(session.replay()) == 2
    with pytest.raises(SessionError, match="answer 1 does not belong"):
        take(session, answer(1, 20))  # before the answer to frame 0


def test_a_cloud_cannot_hold_frames_that_were_never_sent() -> None:
    session = EdgeSession([1, 2, 3], chunk_tokens=4)
    session.open()
    with pytest.raises(SessionError, match="holds 1 frames of 0"):
        session.opened(1)

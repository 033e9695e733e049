"""What was sent for one prompt is named for the next, and only what begins the same."""

from __future__ import annotations

from edge.generation.prefix_memory import PrefixMemory
from edge.generation.session import EdgeSession
from protos.messages import Frame, Result

PROMPT = tuple(range(100, 140))


def frames(prompt: tuple[int, ...] = PROMPT, size: int = 16) -> list[Frame]:
    return [
        Frame(
            sequence=index,
            first_position=begin,
            token_ids=prompt[begin : begin + size],
            hidden=bytes([index]) * 10,
            want_token=begin + size >= len(prompt),
        )
        for index, begin in enumerate(range(0, len(prompt), size))
    ]


def test_the_longest_common_beginning_is_found_at_its_level() -> None:
    memory = PrefixMemory()
    memory.remember("q2", frames())
    memory.remember("q2", frames((*PROMPT[:16], 1, *PROMPT[17:])))
    assert len(memory.matching("q2", PROMPT)) == 2
    assert len(memory.matching("q2", (*PROMPT[:20], 9, 9, 9))) == 1
    assert memory.matching("q2", PROMPT[:17]) == ()  # two tokens have to be left to ask with
    assert len(memory.matching("q2", PROMPT[:18])) == 1
    assert memory.matching("lossless", PROMPT) == ()
    assert memory.matching("q2", PROMPT[1:]) == ()


def test_each_device_has_a_secret_of_its_own_unless_it_shares() -> None:
    salts = {PrefixMemory().salt for _ in range(3)}
    assert len(salts) == 3
    assert all(len(salt) == 32 for salt in salts)
    assert PrefixMemory(share=True).salt == b""


def test_the_oldest_prompts_are_forgotten_first() -> None:
    memory = PrefixMemory(max_bytes=45)
    for start in range(3):
        memory.remember("q2", frames(tuple(range(start, start + 40))))
    assert memory.matching("q2", tuple(range(40))) == ()
    assert len(memory.matching("q2", tuple(range(2, 42)))) == 2


def test_a_session_goes_on_behind_what_the_cloud_holds_and_can_still_replay_it() -> None:
    known = frames()[:2]
    session = EdgeSession(PROMPT, chunk_tokens=16, known=known)
    session.open()
    session.opened(held_frames=1)
    rows = session.next_rows()
    assert rows is not None
    assert (rows.first_position, rows.token_ids) == (16, PROMPT[16:32])
    session.sent(rows, b"x")
    last = session.next_rows()
    assert last is not None
    session.sent(last, b"y")
    assert [frame.sequence for frame in session.journal.frames] == [0, 1, 2]
    session.received(Result(sequence=1, token_ids=(), num_tokens=32))
    session.lost()
    session.open()
    session.opened(held_frames=0)
    assert [frame.hidden for frame in session.replay()] == [known[0].hidden, b"x", b"y"]
    session.lost()
    session.open()
    session.opened(held_frames=1)  # another server that holds the beginning
    assert [frame.sequence for frame in session.replay()] == [1, 2]

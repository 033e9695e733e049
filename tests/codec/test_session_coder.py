"""Rows of a session are predicted from earlier ones: both sides hold the same, whatever happens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.bench import synthetic_ladder, synthetic_rows
from codec.errors import FrameError
from codec.frame import MIXED_RECALLED, RECALLED, check_seed, pack_frame, peek_level
from codec.ladder import Ladder
from codec.session_coder import SessionCoder
from codec.session_rows import MAX_HELD_ROWS, RowHistory

LADDER = synthetic_ladder(96)
LEVEL = "calibrated"


def text(num_rows: int, seed: int, *, vocabulary: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose tokens repeat, and that resemble earlier rows of the same token."""
    rows, _ = synthetic_rows(LADDER, num_rows, seed)
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, vocabulary, num_rows)
    seen: dict[int, int] = {}
    for index, token in enumerate(ids.tolist()):
        if token in seen:
            rows[index] = 0.8 * rows[seen[token]] + 0.6 * rows[index]
        seen[token] = index
    return rows, ids


def sent(
    coder: SessionCoder, rows: np.ndarray, ids: np.ndarray, cuts: list[int], begin: int = 0
) -> list[tuple[int, int, bytes]]:
    """Frames of rows cut at these places, taken by the sender."""
    frames = []
    for first, end in zip([begin, *cuts], [*cuts, len(rows)], strict=True):
        part = slice(first, end)
        frame, arrived = coder.encode(LEVEL, rows[part], ids[part], first_position=first)
        coder.take(first, ids[part], arrived)
        frames.append((first, end, frame))
    return frames


def received(
    coder: SessionCoder, frames: list[tuple[int, int, bytes]], ids: np.ndarray
) -> np.ndarray:
    """The rows of frames, as a receiver holds them at the end of each."""
    found = np.zeros((len(ids), LADDER.hidden_size), dtype=np.float32)
    for first, end, frame in frames:
        rows, arrived = coder.decode(frame, token_ids=ids[first:end], first_position=first)
        coder.take(first, ids[first:end], arrived)
        found[first:end] = rows
    return found


def test_rows_that_resemble_earlier_ones_take_fewer_bytes_and_arrive_as_well() -> None:
    rows, ids = text(400, 0)
    plain = LADDER.encode(LEVEL, rows, ids)
    before = LADDER.decode(plain, num_rows=400, token_ids=ids)
    frames = sent(SessionCoder(LADDER), rows, ids, [])
    found = received(SessionCoder(LADDER), frames, ids)
    assert peek_level(frames[0][2])[0] == RECALLED
    assert LADDER.level_of(frames[0][2]) == LEVEL
    assert len(frames[0][2]) < 0.85 * len(plain)
    assert np.square(found - rows).mean() < 1.1 * np.square(before - rows).mean()


@given(st.integers(0, 50), st.sets(st.integers(1, 39), max_size=8))
@settings(max_examples=30, deadline=None)
def test_rows_arrive_alike_however_they_are_cut_into_frames(seed: int, cuts: set[int]) -> None:
    """Up to 32 rows a frame, bit for bit; both sides hold the same rows."""
    rows, ids = text(40, seed)
    one_by_one = sent(SessionCoder(LADDER), rows, ids, list(range(1, 40)))
    single = SessionCoder(LADDER)
    expected = received(single, one_by_one, ids)
    edge, cloud = SessionCoder(LADDER), SessionCoder(LADDER)
    frames = sent(edge, rows, ids, sorted({*cuts, 20}))
    assert received(cloud, frames, ids).tobytes() == expected.tobytes()
    assert edge.check_before(40) == cloud.check_before(40) == single.check_before(40)


@given(st.integers(0, 50), st.integers(1, 39), st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_refused_drafts_leave_no_trace(seed: int, at: int, num_drafts: int) -> None:
    rows, ids = text(40, seed)
    wrong, wrong_ids = text(num_drafts, seed + 1000)
    edge, cloud, straight = (SessionCoder(LADDER) for _ in range(3))
    first = sent(edge, rows[:at], ids[:at], [])
    received(cloud, first, ids[:at])
    frame, arrived = edge.encode(LEVEL, wrong, wrong_ids, first_position=at)
    edge.take(at, wrong_ids, arrived)
    _, found = cloud.decode(frame, token_ids=wrong_ids, first_position=at)
    cloud.take(at, wrong_ids, found)
    rest = sent(edge, rows, ids, [], begin=at)
    received(cloud, rest, ids)
    sent(straight, rows, ids, [at])
    assert edge.check_before(40) == cloud.check_before(40) == straight.check_before(40)


def test_a_replayed_session_holds_the_same_rows_bit_for_bit() -> None:
    """Its journal has refused drafts, rows that are declined, and frames of other levels."""
    rows, ids = text(60, 3)
    rows[0] *= 1000
    rows[31, 5] = 26_800.0
    edge, cloud, replayed = (SessionCoder(LADDER) for _ in range(3))
    journal = []
    for first, end, level in ((0, 20, LEVEL), (20, 24, LEVEL), (22, 30, "tabq"), (30, 60, LEVEL)):
        part = slice(first, end)
        frame, arrived = edge.encode(level, rows[part], ids[part], first_position=first)
        edge.take(first, ids[part], arrived)
        journal.append((first, end, frame))
    assert peek_level(journal[0][2])[0] == MIXED_RECALLED
    found = received(cloud, journal, ids)
    assert received(replayed, journal, ids).tobytes() == found.tobytes()
    assert edge.check_before(60) == cloud.check_before(60) == replayed.check_before(60)
    assert found[0].tobytes() == rows[0].tobytes()


def test_plain_frames_are_held_too() -> None:
    rows, ids = text(80, 4)
    edge, cloud = SessionCoder(LADDER), SessionCoder(LADDER)
    frame, arrived = edge.encode(LEVEL, rows[:40], ids[:40], first_position=0, plain=True)
    assert frame == LADDER.encode(LEVEL, rows[:40], ids[:40])
    edge.take(0, ids[:40], arrived)
    found = received(cloud, [(0, 40, frame), *sent(edge, rows, ids, [], begin=40)], ids)
    assert np.isfinite(found).all()
    assert edge.check_before(80) == cloud.check_before(80)


def test_a_beginning_is_what_another_session_goes_on_from() -> None:
    rows, ids = text(60, 5)
    edge, cloud = SessionCoder(LADDER), SessionCoder(LADDER)
    received(cloud, sent(edge, rows[:40], ids[:40], [20]), ids[:40])
    other = SessionCoder(LADDER, cloud.beginning(20))
    assert other.check_before(20) == cloud.check_before(20)
    received(other, sent(edge, rows, ids, [], begin=20), ids)
    assert other.check_before(60) == edge.check_before(60)


@pytest.mark.parametrize("change", ["position", "token", "row", "missing"])
def test_a_side_that_holds_other_rows_refuses_the_frame(change: str) -> None:
    rows, ids = text(30, 6)
    edge, cloud = SessionCoder(LADDER), SessionCoder(LADDER)
    sent(edge, rows[:29], ids[:29], [])
    frame, _ = edge.encode(LEVEL, rows[29:], ids[29:], first_position=29)
    others, names = rows[:29].copy(), ids[:29].copy()
    if change == "token":
        names[3] += 1
    if change == "row":
        others[3] += 1
    end = 28 if change == "missing" else 29
    sent(cloud, others[:end], names[:end], [])
    with pytest.raises(FrameError):
        cloud.decode(frame, token_ids=ids[29:], first_position=28 if change == "position" else 29)


def test_a_frame_of_a_session_is_refused_outside_of_one() -> None:
    rows, ids = text(2, 7)
    frame, _ = SessionCoder(LADDER).encode(LEVEL, rows, ids, first_position=0)
    with pytest.raises(FrameError):
        LADDER.decode(frame, num_rows=2, token_ids=ids)


@given(st.integers(0, 3), st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_a_damaged_frame_is_refused_or_gives_finite_rows_and_changes_nothing(
    index: int, seed: int
) -> None:
    """Its check is made to hold, so that the decoder itself meets the damage."""
    rng = np.random.default_rng(seed)
    rows, ids = text(24, 8)
    edge = SessionCoder(LADDER)
    rows[20, 5] = 26_800.0
    rows[22] *= 1000 if index % 2 else 1
    sent(edge, rows[:16], ids[:16], [])
    last = 24 if index < 2 else 17
    part = slice(16, last)
    frame, _ = edge.encode(LEVEL, rows[part], ids[part], first_position=16)
    kind, level = peek_level(frame)
    before = edge.check_before(16)
    payload = bytearray(frame[5:])
    for _ in range(rng.integers(1, 4)):
        payload[rng.integers(len(payload))] ^= 1 << rng.integers(8)
    cut = int(rng.integers(len(payload) + 1)) if rng.random() < 0.3 else len(payload)
    seeded = edge.seed_of(frame, 16)
    damaged = pack_frame(kind, level, last - 16, bytes(payload[:cut]), seeded)
    try:
        found, _ = edge.decode(damaged, token_ids=ids[part], first_position=16)
    except FrameError:
        pass
    else:
        assert np.isfinite(found).all()
    assert edge.check_before(16) == before
    assert edge.num_tokens == 16


def test_the_longest_common_context_is_found_and_the_latest_of_equals() -> None:
    held = RowHistory(1)
    names = [1, 2, 3, 4, 9, 2, 3, 4, 1, 2, 3, 4]
    taken = np.ones(12, dtype=np.bool_)
    values = np.arange(12, dtype=np.int16)[:, None]
    found = held.references(0, names, taken)
    assert found.positions.tolist() == [-1, -1, -1, -1, -1, 1, 2, 3, 0, 1, 2, 3]
    assert found.contexts.tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 1, 2, 3, 4]
    held.extend(0, names, values, taken)
    again = held.references(8, names[8:], taken[8:])
    assert again.positions.tolist() == found.positions[8:].tolist()
    assert again.contexts.tolist() == found.contexts[8:].tolist()
    held.extend(5, [7], None, None)
    assert held.num_tokens == 6
    assert held.references(6, [3], taken[:1]).positions.tolist() == [2]


def test_rows_beyond_the_most_that_are_held_still_refer_to_those() -> None:
    held = RowHistory(1)
    count = MAX_HELD_ROWS + 10
    names = list(range(count))
    values = np.ones((count, 1), dtype=np.int16)
    held.extend(0, names, values, np.ones(count, dtype=np.bool_))
    ones = np.ones(1, dtype=np.bool_)
    assert held.references(count, [5], ones).positions.tolist() == [5]
    assert held.references(count, [count - 1], ones).positions.tolist() == [-1]
    with pytest.raises(ValueError, match="behind"):
        held.extend(count + 1, [0], None, None)


def test_tables_without_shares_make_a_ladder_that_cannot_recall() -> None:
    assert LADDER.can_recall
    assert not Ladder.lossless(96).can_recall
    assert check_seed(96, LADDER.tables_sha256) == LADDER.seed

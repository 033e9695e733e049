"""Which replica a stream goes to, by itself; `tests/cloud/cluster` holds it to a real HAProxy."""

from __future__ import annotations

from collections import Counter

from optimizer.policy.replica_choice import SlotLoad, chosen_slot, header_hash

HASHES = [header_hash(f"{number:032x}".encode()) for number in range(2_000)]


def slots(*streams: int) -> list[SlotLoad]:
    return [SlotLoad(number, count) for number, count in enumerate(streams, start=1)]


def test_equal_beginnings_meet_and_a_new_replica_takes_from_all_what_it_gets() -> None:
    before = {place: chosen_slot(slots(0, 0, 0), place) for place in HASHES}
    after = {place: chosen_slot(slots(0, 0, 0, 0), place) for place in HASHES}
    assert set(before.values()) == {1, 2, 3}
    assert {after[place] for place in HASHES if after[place] != before[place]} == {4}
    taken_from = Counter(before[place] for place in HASHES if after[place] == 4)
    assert set(taken_from) == {1, 2, 3}


def test_no_replica_has_much_more_than_its_share() -> None:
    """All prompts begin alike, and no stream ends."""
    streams = [0] * 8
    for total in range(200):
        slot = chosen_slot(slots(*streams), HASHES[0])
        assert slot is not None
        streams[slot - 1] += 1
        assert max(streams) <= max(-(-175 * (total + 1) // 800), 1)
    assert streams[(chosen_slot(slots(*[0] * 8), HASHES[0]) or 0) - 1] == max(streams)


def test_a_named_replica_gets_its_stream_where_it_is_full_and_not_where_it_drains() -> None:
    drained = [SlotLoad(1, 50, takes_new=False), SlotLoad(2, 0)]
    assert {chosen_slot(drained, place) for place in HASHES} == {2}
    assert {chosen_slot(drained, place, named=1) for place in HASHES} == {2}
    assert chosen_slot(slots(9, 0), HASHES[0], named=1) == 1


def test_a_name_of_nobody_is_like_none() -> None:
    bare = [chosen_slot(slots(0, 0), place) for place in HASHES]
    assert [chosen_slot(slots(0, 0), place, named=7) for place in HASHES] == bare


def test_without_a_replica_there_is_none() -> None:
    assert chosen_slot([], HASHES[0]) is None
    assert chosen_slot([SlotLoad(1, 0, takes_new=False)], HASHES[0]) is None

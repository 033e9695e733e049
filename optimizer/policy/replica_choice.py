"""Which replica a stream goes to: the door's rule, as `cloud.cluster.door_config` sets HAProxy up.

The real door is HAProxy, so this module decides nothing there. It says in Python what HAProxy does,
for the simulator and for tests that hold it to a real HAProxy. Mirrored are

- `use-server`: a stream that names a replica goes there while that one takes new streams. Once it
  drains, its name is taken out of the door's map, and the stream goes where others go.
- `hash-type consistent sdbm avalanche`: every slot that takes new streams has 16 points on a ring
  of 2^32 places, by its number. A stream goes to the nearest point, before or behind it, of the
  hash of its prompt's first block. (Karger et al. 1997, "Consistent hashing and random trees".)
- `hash-balance-factor`: a slot may have so many percent of an equal share of all streams, rounded
  up in sum, and at least one. A fuller one is passed over for the next point of the ring.
  (Mirrokni, Thorup and Zadimoghaddam 2018, "Consistent hashing with bounded loads".)
- `redispatch`: a replica that does not listen is passed over at once.

Not mirrored: health checks, which make a dead replica known before a stream meets it; they change
the time of the first stream after a loss by a failed connection on the door's own network.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

# A replica may have this many percent of the streams that it would have if all had the same.
MOST_LOAD_PERCENT: Final = 175
POINTS_A_SLOT: Final = 16
_PLACES: Final = 1 << 32
_POINTS_APART: Final = 1 << 12  # HAProxy's numbers of points: 4,096 a slot


class SlotLoad(NamedTuple):
    """One slot of the door that has a replica: its number (from 1) and the streams it carries.

    takes_new: False while the replica drains.
    """

    number: int
    streams: int
    takes_new: bool = True


def chosen_slot(
    slots: Sequence[SlotLoad],
    first_block: int,
    *,
    named: int | None = None,
    most_load_percent: int = MOST_LOAD_PERCENT,
) -> int | None:
    """The slot for a new stream; None: there is no replica that could take it.

    slots: of the replicas that listen, by rising number. first_block: the hash of the prompt's
    first block, 0 to 2^32 - 1 (`header_hash`). named: the slot of the replica that it names.
    """
    takers = [slot for slot in slots if slot.takes_new]
    if not takers:
        return None
    if named is not None and any(slot.number == named for slot in takers):
        return named
    share = (sum(slot.streams for slot in slots) + 1) * most_load_percent
    total, count = -(-share // 100), len(takers)
    # The rounding of the shares goes around, so that they add up to the total.
    free = {
        slot.number: slot.streams < max((total + total * index % count) // count, 1)
        for index, slot in enumerate(takers)
    }
    places, owners = _ring(tuple(free))
    at = _nearest(places, first_block)
    for step in range(len(places)):
        number = owners[(at + step) % len(places)]
        if free[number]:
            return number
    return owners[at]


def header_hash(value: bytes) -> int:
    """HAProxy's hash of a header's value, as `sdbm avalanche` says: 0 to 2^32 - 1."""
    found = 0
    for byte in value:
        found = (byte + (found << 6) + (found << 16) - found) % _PLACES
    return _avalanche(found)


@lru_cache(maxsize=64)
def _ring(numbers: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ring's occupied places in rising order, and the number of the slot at each."""
    points = sorted(
        (_avalanche(number * _POINTS_APART + point), number)
        for number in numbers
        for point in range(POINTS_A_SLOT)
    )
    places, owners = zip(*points, strict=True)
    return places, owners


def _nearest(places: Sequence[int], place: int) -> int:
    """The index of the occupied place nearest to `place` on the ring; of two, the one before."""
    behind = bisect_left(places, place) % len(places)
    before = behind - 1
    to_before = (place - places[before]) % _PLACES
    to_behind = (places[behind] - place) % _PLACES
    return before % len(places) if to_before <= to_behind else behind


def _avalanche(value: int) -> int:
    """Bob Jenkins' hash of a 32-bit integer (public domain), and HAProxy's factor behind it."""
    value = (value + 0x7ED55D16 + (value << 12)) % _PLACES
    value = (value ^ 0xC761C23C) ^ (value >> 19)
    value = (value + 0x165667B1 + (value << 5)) % _PLACES
    value = ((value + 0xD3A2646C) % _PLACES) ^ (value << 9) % _PLACES
    value = (value + 0xFD7046C5 + (value << 3)) % _PLACES
    value = (value ^ 0xB55A4F09) ^ (value >> 16)
    return value * 3221225473 % _PLACES

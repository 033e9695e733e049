"""The places of a cache whose tokens stay, as a frame carries them: one bit a place.

Without numpy: this room is below everything that needs it.
"""

from __future__ import annotations

from collections.abc import Iterable


def places_to_bytes(places: Iterable[int]) -> bytes:
    """Bit i & 7 of byte i >> 3 is set where place i stays."""
    bits = 0
    for place in places:
        bits |= 1 << place
    return bits.to_bytes(-(-bits.bit_length() // 8), "little")


def bytes_to_places(data: bytes) -> list[int]:
    """The places whose bits are set, rising."""
    return [
        at * 8 + bit for at, byte in enumerate(data) if byte for bit in range(8) if byte >> bit & 1
    ]

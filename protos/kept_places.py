"""The places of a cache whose tokens stay, as a frame carries them: one bit a place.

The last bit that is set stands behind the last token, so that both sides count the same tokens: a
replayed session may hold rows of refused guesses besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class KeptPlaces(NamedTuple):
    """Of `num_tokens` tokens in a cache, those in these rising places stay."""

    places: Sequence[int]
    num_tokens: int


def places_to_bytes(kept: KeptPlaces) -> bytes:
    """Bit i & 7 of byte i >> 3 is set where place i stays, and behind the last token."""
    bits = 1 << kept.num_tokens
    for place in kept.places:
        bits |= 1 << place
    return bits.to_bytes(kept.num_tokens // 8 + 1, "little")


def bytes_to_places(data: bytes) -> KeptPlaces:
    """What the bits say. ValueError where none is set."""
    *places, end = (
        at * 8 + bit for at, byte in enumerate(data) if byte for bit in range(8) if byte >> bit & 1
    )
    return KeptPlaces(places, end)

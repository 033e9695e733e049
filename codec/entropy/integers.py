"""Signed integer codes of any size through the entropy coder, by scale family.

A family k stands for codes whose typical magnitude is 2^((k-16)/4) steps, a quarter octave apart.
A code q is split as q = high * 2^shift + low, with shift 0 for all but wide families: `high`
is a symbol of its family's model, `low` goes as plain bits (at that width they are noise). I32
beyond the alphabet are escapes: a symbol that says so, and four plain bytes.

Source: ours; the split into modelled and plain bits is that of Golomb-Rice codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from codec.arrays import F64, I32, U8, U16, Mask
from codec.entropy import rans
from codec.entropy.bits import pack, packed_bytes, unpack
from codec.entropy.rans import Models
from codec.errors import FrameError, TablesError

NUM_FAMILIES: Final = 56
FAMILY_OF_ONE: Final = 16  # the family of codes with typical magnitude 1
PER_OCTAVE: Final = 4
REACH: Final = 31  # largest |high| with a symbol of its own
ESCAPE: Final = 2 * REACH + 1
ALPHABET: Final = ESCAPE + 1
MAX_CODE: Final = (1 << 30) - 1

# Family k keeps its `high` near 4 units wide, well inside REACH.
SHIFTS: Final[U8] = np.maximum(
    0, -(-(np.arange(NUM_FAMILIES) - FAMILY_OF_ONE) // PER_OCTAVE) - 2
).astype(np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Families:
    """One model per scale family, [56, 64] symbols."""

    models: Models

    @classmethod
    def from_cdf(cls, cdf: U16) -> Families:
        """Raises TablesError unless cdf is [56, 65] and sound."""
        if cdf.shape != (NUM_FAMILIES, ALPHABET + 1):
            raise TablesError(f"family tables of shape {list(cdf.shape)}")
        return cls(models=Models.from_cdf(cdf))


def to_symbols(family: U8, codes: I32) -> tuple[U8, Mask]:
    """Symbol of each code and whether it escapes; any shape."""
    high = codes >> SHIFTS[family]
    high += REACH
    escapes = (high < 0) | (high > 2 * REACH)
    symbols = high.astype(np.uint8)
    if escapes.any():
        symbols[escapes] = ESCAPE
    return symbols, escapes


def encode_codes(
    families: Families, family: U8, codes: I32, *, native: bool | None = None
) -> bytes:
    """codes [n] int32 with |code| <= MAX_CODE, each under family[i] [n] uint8."""
    symbols, escapes = to_symbols(family, codes)
    stream = rans.encode(families.models, family, symbols, native=native)
    shifts = SHIFTS[family]
    wide = np.flatnonzero((shifts > 0) & ~escapes)
    widths = shifts[wide].astype(np.int64)
    low = codes[wide].astype(np.int64) & (1 << widths) - 1
    return b"".join((stream, pack(low, widths), codes[escapes].astype("<i4").tobytes()))


def decode_codes(
    families: Families, family: U8, data: memoryview, *, native: bool | None = None
) -> tuple[I32, int]:
    """The codes [n] at the front of `data` and the bytes used. Raises FrameError."""
    symbols, at = rans.decode(families.models, family, data, native=native)
    escapes = symbols == ESCAPE
    codes = symbols.astype(np.int32) - REACH
    shifts = SHIFTS[family]
    wide = np.flatnonzero((shifts > 0) & ~escapes)
    if len(wide):
        widths = shifts[wide].astype(np.int64)
        low = unpack(data[at:], widths)
        at += packed_bytes(widths)
        codes[wide] = (codes[wide].astype(np.int64) << widths) + low
    num_escapes = int(escapes.sum())
    if num_escapes:
        if len(data) < at + 4 * num_escapes:
            raise FrameError("escaped codes end too early")
        escaped = np.frombuffer(data, "<i4", count=num_escapes, offset=at)
        if (np.abs(escaped.astype(np.int64)) > MAX_CODE).any():
            raise FrameError("escaped code is larger than any encoder makes")
        codes[escapes] = escaped
        at += 4 * num_escapes
    return codes, at


def family_of_scale(scale: F64) -> U8:
    """Nearest family of a typical magnitude in steps; any shape, positive or zero."""
    octaves = np.log2(np.maximum(scale, 1e-9))
    index = np.rint(PER_OCTAVE * octaves) + FAMILY_OF_ONE
    return np.asarray(np.clip(index, 0, NUM_FAMILIES - 1), dtype=np.uint8)

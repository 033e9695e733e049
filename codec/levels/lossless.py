"""The lossless level: float32 rows, bit for bit, in about 27 bits an element.

The exponents of a row lie close to their mean, so they are entropy-coded relative to it under one
fixed model. Sign and mantissa are noise and are sent as they are, three bytes a value. A row with
unusual exponents (zeros, subnormals, huge values) needs escapes, but arrives exactly too.

Layout: per row one byte, the reference exponent; the entropy-coded exponent symbols; one byte for
each escaped exponent; then sign and mantissa, 3 bytes a value, little-endian.
Source: ours; splitting exponents off floats: Lindstrom & Isenburg 2006,
doi 10.1109/TVCG.2006.143.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from codec.arrays import F32, U8, Arrays
from codec.entropy import rans
from codec.entropy.integers import Families
from codec.entropy.rans import TOTAL, Models
from codec.errors import FrameError, TablesError
from codec.levels.base import CodecKind, CoderSeconds, Entry, LadderTables, LevelSpec
from codec.levels.split_model import FittedSplit, SplitModel
from codec.rows import Encoded, RowCodec, Rows, TokenIds

_NUMBER: Final = 0
_ABOVE: Final = 12  # symbols reach this many octaves above the reference, the rest below
_ALPHABET: Final = 40
_ESCAPE: Final = _ALPHABET - 1
# Share of values at 12, 11, ... octaves above the reference, in 2^14ths. Measured on hidden states
# of a language model; further down the share halves with every octave.
_HEAD: Final = (2, 2, 2, 2, 2, 4, 20, 48, 95, 490, 2050, 4400, 4150, 2500, 1330)


def _model() -> Models:
    freqs = list(_HEAD)
    tail = 670
    while len(freqs) < _ESCAPE:
        freqs.append(max(2, tail))
        tail //= 2
    freqs.append(4)
    freqs[_ABOVE] += TOTAL - sum(freqs)
    return Models.from_cdf(np.array([[0, *np.cumsum(freqs)]], dtype=np.uint16))


EXPONENTS: Final = _model()


def encode_lossless(rows: Rows, token_ids: TokenIds) -> bytes:
    """rows: [T, D] float32."""
    if rows.size == 0:
        return b""
    bits = np.ascontiguousarray(rows, dtype=np.float32).view(np.uint32)
    exponent = (bits >> 23 & 0xFF).astype(np.int16)  # [T, D]
    reference = np.rint(exponent.mean(axis=1)).astype(np.int16)
    drop = reference[:, None] + _ABOVE - exponent
    escaped = (drop < 0) | (drop >= _ESCAPE)
    symbols = np.where(escaped, _ESCAPE, drop).astype(np.uint8).reshape(-1)
    rest = (bits & 0x7FFFFF | bits >> 31 << 23).astype("<u4").reshape(-1, 1)
    return b"".join(
        (
            reference.astype(np.uint8).tobytes(),
            rans.encode(EXPONENTS, _only_model(rows.size), symbols),
            exponent[escaped].astype(np.uint8).tobytes(),
            rest.view(np.uint8)[:, :3].tobytes(),
        )
    )


def decode_lossless(payload: bytes, num_rows: int, hidden_size: int, token_ids: TokenIds) -> Rows:
    """The inverse, [num_rows, hidden_size] float32. Raises FrameError on anything else."""
    count = num_rows * hidden_size
    data = memoryview(payload)
    if count == 0:
        if len(data):
            raise FrameError(f"{len(data)} bytes for no values")
        return np.zeros((num_rows, hidden_size), dtype=np.float32)
    if len(data) < num_rows:
        raise FrameError("reference exponents end too early")
    reference = np.frombuffer(data, np.uint8, count=num_rows).astype(np.int16)
    symbols, used = rans.decode(EXPONENTS, _only_model(count), data[num_rows:])
    at = num_rows + used
    drop = symbols.astype(np.int16).reshape(num_rows, hidden_size)
    exponent = reference[:, None] + _ABOVE - drop
    escaped = drop == _ESCAPE
    num_escaped = int(escaped.sum())
    if len(data) != at + num_escaped + 3 * count:
        raise FrameError(f"lossless payload of {len(data)} bytes for {count} values")
    exponent[escaped] = np.frombuffer(data, np.uint8, count=num_escaped, offset=at)
    if exponent.min() < 0 or exponent.max() > 0xFF:
        raise FrameError("exponent outside 0..255")
    rest = np.zeros((count, 4), dtype=np.uint8)
    rest[:, :3] = np.frombuffer(data, np.uint8, offset=at + num_escaped).reshape(-1, 3)
    low = rest.view("<u4").reshape(num_rows, hidden_size).astype(np.uint32)
    bits = low & 0x7FFFFF | low >> 23 << 31 | exponent.astype(np.uint32) << 23
    rows: F32 = bits.view(np.float32)
    return rows


def _only_model(count: int) -> U8:
    return np.zeros(count, dtype=np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class LosslessCodec:
    """The lossless level's coder."""

    hidden_size: int
    kind: int = _NUMBER

    def encode(self, rows: Rows, token_ids: TokenIds) -> Encoded:
        """See RowCodec; it declines none."""
        none = np.zeros(len(rows), dtype=np.bool_)
        return Encoded(payload=encode_lossless(rows, token_ids), declined=none)

    def decode(self, payload: bytes, num_rows: int, token_ids: TokenIds) -> Rows:
        """See RowCodec."""
        return decode_lossless(payload, num_rows, self.hidden_size, token_ids)


class LosslessKind(CodecKind):
    """The kind of the one lossless level, which every ladder begins with."""

    name = "lossless"
    number = _NUMBER
    level_pattern = re.compile("lossless")
    levels: ClassVar[tuple[LevelSpec, ...]] = (
        LevelSpec(name="lossless", bits_per_element=27.1, quality_loss_pct=0.0),
    )
    seconds = CoderSeconds(
        encode_fixed_s=30e-6,
        encode_s_per_element=20e-9,
        decode_fixed_s=30e-6,
        decode_s_per_element=28e-9,
    )
    in_tables = False

    def read(self, entry: Entry, tables: LadderTables) -> RowCodec:
        """Always TablesError: the level is in no tables file."""
        raise TablesError("the lossless level is in every ladder and in no tables file")

    def fit(self, name: str, target_kl: float, split: FittedSplit) -> tuple[Entry, Arrays]:
        """Always ValueError: there is nothing to fit."""
        raise ValueError("the lossless level has nothing to fit")

    def synthetic(self, model: SplitModel, families: Families) -> RowCodec:
        """See CodecKind."""
        return LosslessCodec(hidden_size=len(model.mean))


LOSSLESS: Final = LosslessKind()

"""The lossless level: float32 rows, bit for bit, in about 27 bits an element.

The exponents of a row huddle around their mean, so they are entropy-coded relative to it under one
fixed model; sign and mantissa are noise and travel as they are, three bytes a value. A row whose
exponents are strange (zeros, subnormals, huge values) pays with escapes, never with bits.

Layout: per row one byte, the reference exponent; the entropy-coded exponent symbols; one byte for
each escaped exponent; then sign and mantissa, 3 bytes a value, little-endian.
Source: ours; splitting exponents off floats: Lindstrom & Isenburg 2006,
doi 10.1109/TVCG.2006.143.
"""

import numpy as np
import numpy.typing as npt

from codec.entropy import rans as entropy
from codec.entropy.rans import TOTAL, Models
from codec.entropy.rans_numpy import U8
from codec.errors import FrameError
from codec.rows import Rows, TokenIds

_ABOVE = 12  # symbols reach this many octaves above the reference, the rest below
_ALPHABET = 40
_ESCAPE = _ALPHABET - 1
# Share of values at 12, 11, ... octaves above the reference, in 2^14ths; measured on hidden states
# of a language model, from where the tail halves with every octave as any density flat at 0 does.
_HEAD = (2, 2, 2, 2, 2, 4, 20, 48, 95, 490, 2050, 4400, 4150, 2500, 1330)


def _model() -> Models:
    freqs = list(_HEAD)
    tail = 670
    while len(freqs) < _ESCAPE:
        freqs.append(max(2, tail))
        tail //= 2
    freqs.append(4)
    freqs[_ABOVE] += TOTAL - sum(freqs)
    return Models.from_cdf(np.array([[0, *np.cumsum(freqs)]], dtype=np.uint16))


EXPONENTS = _model()


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
            entropy.encode(EXPONENTS, _which(rows.size), symbols),
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
    symbols, used = entropy.decode(EXPONENTS, _which(count), data[num_rows:])
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
    rows: npt.NDArray[np.float32] = bits.view(np.float32)
    return rows


def _which(count: int) -> U8:
    return np.zeros(count, dtype=np.uint8)

"""The frame around every encoded block of rows: a few bytes that say what follows and guard it.

Layout (all of it counted in every bits-per-element figure this project prints)::

    byte 0      magic 0xA in the high nibble, format version in the low nibble
    byte 1      number of the codec kind (3 bits), index of the level in the ladder (5 bits)
    varint      number of rows T, LEB128, at most 4 bytes
    2 or 4      check: CRC-32 of (D, tables digest, the bytes above, payload), little-endian,
                folded to 16 bits when the payload is shorter than 1,024 bytes
    rest        payload, as long as the message that carried it says

A decode frame holds one row: 144 bytes for D = 576 at 2 bits an element. Every byte here costs
0.014 bits an element, so the frame leaves out D, the tables digest and the payload length. Both
sides already agreed on D and the tables, and the transport carries the length. D and the digest
still go into the check: a frame made for another width or other tables is refused.

Source: ours; the seeded check is what QUIC does with its packet header (RFC 9001, section 5.3).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final

from codec.errors import FrameError

MAGIC: Final = 0xA
VERSION: Final = 2
MAX_LEVELS: Final = 32
MAX_ROWS: Final = 1 << 20  # cap on T before anything is allocated
MAX_BYTES_PER_ELEMENT: Final = 6  # no encoder of ours needs more, even if every value escapes
FIXED_BYTES: Final = 256  # headroom for header, lane states and per-row side information
_LONG_CHECK_FROM_BYTES: Final = 1024

# Each kind of codec has a number of its own, a part of the format (`codec.levels.registry`). This
# one says that rows which the level declined follow at a safer level; see `codec.ladder`.
MIXED: Final = 3
# The same two, of a session whose rows are predicted from earlier ones: `codec.levels.recalled`.
RECALLED: Final = 4
MIXED_RECALLED: Final = 5
MAX_KINDS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedFrame:
    """A frame whose check has held: number of its kind, level index, T rows, payload."""

    kind: int
    level_index: int
    num_rows: int
    payload: bytes


def check_seed(hidden_size: int, tables_sha256: str) -> int:
    """CRC-32 over what both sides agreed on: the width D and the hex digest of the tables."""
    return zlib.crc32(f"{hidden_size}:{tables_sha256}".encode())


def _check_bytes(seed: int, head: bytes, payload: bytes) -> bytes:
    crc = zlib.crc32(payload, zlib.crc32(head, seed))
    if len(payload) < _LONG_CHECK_FROM_BYTES:
        return ((crc >> 16) ^ (crc & 0xFFFF)).to_bytes(2, "little")
    return crc.to_bytes(4, "little")


def pack_frame(kind: int, level_index: int, num_rows: int, payload: bytes, seed: int) -> bytes:
    """Put header and check in front of `payload`. `seed` comes from `check_seed`."""
    if not 0 <= kind < MAX_KINDS:
        raise ValueError(f"codec kind {kind} is outside 0..{MAX_KINDS - 1}")
    if not 0 <= level_index < MAX_LEVELS:
        raise ValueError(f"level index {level_index} is outside 0..{MAX_LEVELS - 1}")
    if not 0 <= num_rows <= MAX_ROWS:
        raise ValueError(f"{num_rows} rows in one frame; the most is {MAX_ROWS}")
    head = bytes((MAGIC << 4 | VERSION, kind << 5 | level_index)) + pack_varint(num_rows)
    return head + _check_bytes(seed, head, payload) + payload


def unpack_frame(frame: bytes, seed: int) -> ParsedFrame:
    """Parse and verify. Raises FrameError for anything but an intact frame of this version."""
    kind, level_index, num_rows, at = _read_head(frame)
    # The check's own length follows from the payload's, which is what remains.
    rest = len(frame) - at
    width = 2 if rest - 2 < _LONG_CHECK_FROM_BYTES else 4
    if rest < width:
        raise FrameError("frame ends inside its header")
    payload = bytes(frame[at + width :])
    if frame[at : at + width] != _check_bytes(seed, bytes(frame[:at]), payload):
        raise FrameError("check failed: the frame is damaged, or made with other tables or width")
    return ParsedFrame(kind=kind, level_index=level_index, num_rows=num_rows, payload=payload)


def peek_level(frame: bytes) -> tuple[int, int]:
    """Kind and level index from the first bytes, check not verified."""
    kind, level_index, _, _ = _read_head(frame)
    return kind, level_index


def _read_head(frame: bytes) -> tuple[int, int, int, int]:
    if len(frame) < 3:
        raise FrameError(f"frame of {len(frame)} bytes is shorter than any header")
    if frame[0] >> 4 != MAGIC:
        raise FrameError("not a codec frame (wrong magic)")
    if frame[0] & 0xF != VERSION:
        raise FrameError(f"frame version {frame[0] & 0xF}, this side speaks {VERSION}")
    kind, level_index = split_kind_and_level(frame[1])
    num_rows, at = read_varint(frame, 2)
    if num_rows > MAX_ROWS:
        raise FrameError(f"{num_rows} rows in one frame; the most is {MAX_ROWS}")
    return kind, level_index, num_rows, at


def split_kind_and_level(byte: int) -> tuple[int, int]:
    """Codec kind and level index of their common byte."""
    return byte >> 5, byte & 0x1F


def pack_varint(value: int) -> bytes:
    """LEB128: seven bits a byte, least significant first, the high bit set on all but the last."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at` and where it ends. Raises FrameError beyond 4 bytes, or 2^28."""
    value = 0
    for index in range(4):
        if at + index >= len(data):
            raise FrameError("frame ends inside its header")
        byte = data[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise FrameError("a count takes more than 4 bytes")


def max_payload_bytes(num_rows: int, hidden_size: int) -> int:
    """The most a payload of [num_rows, hidden_size] may take; longer ones are refused unread."""
    return FIXED_BYTES + num_rows * (hidden_size * MAX_BYTES_PER_ELEMENT + FIXED_BYTES)

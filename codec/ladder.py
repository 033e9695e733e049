"""The levels one bundle offers at one split: what edge and cloud encode and decode with.

Level 0 is always `lossless`; the others follow in order of decreasing quality. A ladder with only
that level needs no tables. Every other ladder comes from a tables file that `splitpoint build`
makes.

**Rows do not depend on each other.** A row arrives as if it had been sent alone, bit for bit, in
every frame of up to `codec.rows.ROWWISE_UP_TO` (32) rows and at every level. Rotations go row by
row there, and all else works on each row by itself. A row that a level declines goes at the safe
level; the frame's other rows keep theirs. So drafting (k + 1 rows in a frame) and replaying a
journal give the cloud the same numbers as plain decoding. This holds for one machine and one numpy
on each side. In longer frames the last bits of a rotation may differ.

Body of a frame, after its header: the level's payload; or, for kind MIXED, one bit a row (set:
declined), the length of the level's payload (LEB128), that payload for the rows it took, and for
the declined ones a byte of kind and level as in the header and a body again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from codec.arrays import Arrays
from codec.errors import EncodeError, FrameError, TablesError
from codec.frame import (
    MAX_LEVELS,
    MIXED,
    MIXED_RECALLED,
    RECALLED,
    ParsedFrame,
    check_seed,
    max_payload_bytes,
    pack_frame,
    pack_varint,
    peek_level,
    read_varint,
    split_kind_and_level,
    unpack_frame,
)
from codec.levels.base import LadderTables
from codec.levels.calibrated import CalibratedCodec
from codec.levels.lossless import LosslessCodec
from codec.levels.recall_model import RecallModel
from codec.levels.recalled import RecalledCodec
from codec.levels.registry import coder_of
from codec.levels.row_forecast import RowForecast
from codec.levels.split_model import SplitModel
from codec.rows import RowCodec, RowMask, Rows, TokenIds, check_rows, check_token_ids
from codec.tables import read_tables

_MAX_FALLBACKS: Final = 2  # to the safe level, and from there to lossless
_NO_SESSION: Final = "frame refers to earlier rows, and this is no session that holds any"


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One rung: its name and its coder. An extra level is usable by name but not on the ladder.

    recalled: its coder in a session that predicts rows from earlier ones; None: it has none.
    """

    name: str
    codec: RowCodec
    extra: bool = False
    recalled: RecalledCodec | None = None


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Encode and decode rows at any of the named levels.

    `levels[0]` is lossless. `tables_sha256` names the tables both sides must share; frames made
    with others are refused. `safe_level` takes the frames another level declines. `forecast`:
    what the tables say of the next row; None: nothing.
    """

    hidden_size: int
    levels: tuple[Level, ...]
    tables_sha256: str
    safe_level: str = "lossless"
    forecast: RowForecast | None = None

    @classmethod
    def lossless(cls, hidden_size: int) -> Ladder:
        """The ladder that has level `lossless` and nothing else."""
        level = Level(name="lossless", codec=LosslessCodec(hidden_size=hidden_size))
        digest = hashlib.sha256(b"lossless").hexdigest()
        return cls(hidden_size=hidden_size, levels=(level,), tables_sha256=digest)

    @classmethod
    def load(cls, path: Path | str, *, hidden_size: int) -> Ladder:
        """Read a tables file. Raises TablesError if it is damaged or for another width."""
        return _load(Path(path), hidden_size)

    @property
    def names(self) -> tuple[str, ...]:
        """The ladder proper, best quality first; the first is `lossless`."""
        return tuple(level.name for level in self.levels if not level.extra)

    @property
    def extra_names(self) -> tuple[str, ...]:
        """Levels beside the ladder: comparison codecs and the safe level of strange frames."""
        return tuple(level.name for level in self.levels if level.extra)

    @property
    def can_recall(self) -> bool:
        """Whether a level predicts rows from earlier ones of a session (`codec.session_coder`)."""
        return any(level.recalled is not None for level in self.levels)

    @cached_property
    def seed(self) -> int:
        """What the checks of its frames begin with."""
        return check_seed(self.hidden_size, self.tables_sha256)

    def encode(self, level: str, rows: Rows, token_ids: TokenIds) -> bytes:
        """One frame of rows float32 [T, D] whose input tokens were token_ids int64 [T].

        Raises EncodeError for an unknown level, a wrong shape or dtype, NaN or infinity. A row too
        far from the level's model goes at `safe_level` instead. Where every row of the frame does,
        `level_of` says so.
        """
        check_rows(rows, token_ids, self.hidden_size)
        kind, index, body = self.body(self.index_of(level), rows, token_ids)
        return pack_frame(kind, index, len(rows), body, self.seed)

    def body(self, index: int, rows: Rows, token_ids: TokenIds) -> tuple[int, int, bytes]:
        """Kind, level and body of rows asked for at a level."""
        codec = self.levels[index].codec
        payload, declined = codec.encode(rows, token_ids)
        if not declined.any():
            return codec.kind, index, payload
        safe_body = self.safe_body(index, rows[declined], token_ids[declined])
        if declined.all():
            return safe_body
        return MIXED, index, mixed_body(payload, declined, safe_body)

    def safe_body(self, index: int, rows: Rows, token_ids: TokenIds) -> tuple[int, int, bytes]:
        """Kind, level and body of rows that the level at `index` declines."""
        safe = self.index_of(self.safe_level)
        return self.body(0 if index == safe else safe, rows, token_ids)

    def decode(self, frame: bytes, *, num_rows: int, token_ids: TokenIds) -> Rows:
        """The rows of a frame, float32 [num_rows, D]. FrameError, nothing else, on bad bytes.

        num_rows and token_ids [num_rows] come from the message around the frame and are the
        session's own: nothing larger than num_rows x D is ever allocated.
        """
        parsed = self.parsed(frame, num_rows, token_ids)
        rows = self.rows_of(parsed.kind, parsed.level_index, parsed.payload, token_ids)
        return checked_finite(rows)

    def parsed(
        self, frame: bytes, num_rows: int, token_ids: TokenIds, seed: int | None = None
    ) -> ParsedFrame:
        """A frame whose check holds and that has so many rows. FrameError for any other.

        seed: what the check begins with; None: `seed`.
        """
        check_token_ids(token_ids, num_rows, FrameError)
        if len(frame) > max_payload_bytes(num_rows, self.hidden_size):
            raise FrameError(f"frame of {len(frame)} bytes is too long for {num_rows} rows")
        if seed is None and peek_level(frame)[0] in (RECALLED, MIXED_RECALLED):
            raise FrameError(_NO_SESSION)
        parsed = unpack_frame(frame, self.seed if seed is None else seed)
        if parsed.num_rows != num_rows:
            raise FrameError(f"frame holds {parsed.num_rows} rows, expected {num_rows}")
        return parsed

    def rows_of(
        self, kind: int, index: int, body: bytes, token_ids: TokenIds, depth: int = 0
    ) -> Rows:
        """The inverse of `body`, [T, D]."""
        codec = self.checked(kind, index).codec
        if kind in (RECALLED, MIXED_RECALLED):
            raise FrameError(_NO_SESSION)
        if kind != MIXED:
            return codec.decode(body, len(token_ids), token_ids)
        mixed = split_mixed(body, len(token_ids))
        kept = ~mixed.declined
        if depth == _MAX_FALLBACKS:
            raise FrameError("rows of a mixed frame end too early")
        rows = np.empty((len(token_ids), self.hidden_size), dtype=np.float32)
        rows[kept] = codec.decode(mixed.payload, int(kept.sum()), token_ids[kept])
        rows[mixed.declined] = self.rows_of(
            mixed.kind, mixed.below, mixed.rest, token_ids[mixed.declined], depth + 1
        )
        return rows

    def level_of(self, frame: bytes) -> str:
        """Name of the level a frame says it was made at. FrameError if it is none of ours."""
        return self.checked(*peek_level(frame)).name

    def checked(self, kind: int, index: int) -> Level:
        """The level of a frame. FrameError where it has no frames of this kind."""
        level = self.levels[index] if index < len(self.levels) else None
        kinds: tuple[int, ...] = () if level is None else (level.codec.kind, MIXED)
        if level is not None and level.recalled is not None:
            kinds += (RECALLED, MIXED_RECALLED)
        if level is None or kind not in kinds:
            raise FrameError(f"frame of codec kind {kind} at level {index}: no such level")
        return level

    def index_of(self, level: str) -> int:
        """Where a level stands. EncodeError for an unknown one."""
        for index, candidate in enumerate(self.levels):
            if candidate.name == level:
                return index
        raise EncodeError(
            f"no level {level!r}; this ladder has {', '.join(self.names + self.extra_names)}"
        )


class Mixed(NamedTuple):
    """A mixed frame's body: which rows [T] its level declined, the payload of the others, and kind,
    level and body of those."""

    declined: RowMask
    payload: bytes
    kind: int
    below: int
    rest: bytes


def mixed_body(payload: bytes, declined: RowMask, safe_body: tuple[int, int, bytes]) -> bytes:
    """Body of a frame some of whose rows go at a safer level."""
    kind, below, rest = safe_body
    bits = np.packbits(declined, bitorder="little").tobytes()
    return b"".join((bits, pack_varint(len(payload)), payload, bytes((kind << 5 | below,)), rest))


def split_mixed(body: bytes, num_rows: int) -> Mixed:
    """The inverse of `mixed_body`. Raises FrameError."""
    declined, at = _read_declined(body, num_rows)
    size, at = read_varint(body, at)
    end = at + size
    if end >= len(body):
        raise FrameError("rows of a mixed frame end too early")
    kind, index = split_kind_and_level(body[end])
    return Mixed(declined, body[at:end], kind, index, body[end + 1 :])


def checked_finite(rows: Rows) -> Rows:
    """The rows. FrameError where one has NaN or infinity."""
    if not np.isfinite(rows).all():
        raise FrameError("frame decodes to NaN or infinity")
    return rows


def _read_declined(body: bytes, num_rows: int) -> tuple[RowMask, int]:
    """Which rows a mixed frame's first level left out, and where its length begins."""
    size = (num_rows + 7) // 8
    if len(body) < size:
        raise FrameError("mixed frame ends inside its row flags")
    bits = np.unpackbits(np.frombuffer(body, np.uint8, count=size), bitorder="little")
    if bits[num_rows:].any():
        raise FrameError("mixed frame flags rows it does not have")
    declined = bits[:num_rows].astype(np.bool_)
    if declined.all() or not declined.any():
        raise FrameError("mixed frame whose rows are all of one kind")
    return declined, size


def _load(path: Path, hidden_size: int) -> Ladder:
    header, arrays, digest = read_tables(path)
    try:
        tables = _tables_of(header, arrays, hidden_size, path)
        levels = _levels_of(header, tables)
        safe_level = str(header["safe_level"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TablesError(f"{path}: damaged header: {error}") from error
    names = [level.name for level in levels]
    if len(levels) > MAX_LEVELS or len(set(names)) < len(names) or safe_level not in names:
        raise TablesError(f"{path}: level names {names} with safe level {safe_level!r}")
    return Ladder(
        hidden_size=hidden_size,
        levels=tuple(levels),
        tables_sha256=digest,
        safe_level=safe_level,
        forecast=RowForecast.of(arrays, tables.model, hidden_size),
    )


def _tables_of(
    header: dict[str, Any], arrays: Arrays, hidden_size: int, path: Path
) -> LadderTables:
    if header["hidden_size"] != hidden_size:
        raise TablesError(
            f"{path}: tables for hidden size {header['hidden_size']}, this is {hidden_size}"
        )
    model = SplitModel.of(arrays, hidden_size) if "mean" in arrays else None
    return LadderTables(arrays=arrays, model=model, hidden_size=hidden_size)


def _levels_of(header: dict[str, Any], tables: LadderTables) -> list[Level]:
    hidden_size = tables.hidden_size
    recall = RecallModel.of(tables.arrays, hidden_size)
    levels = [Level(name="lossless", codec=LosslessCodec(hidden_size=hidden_size))]
    for entry in header["levels"]:
        codec = coder_of(entry, tables)
        recalled = None
        if recall is not None and isinstance(codec, CalibratedCodec):
            recalled = RecalledCodec.build(codec, recall)
        name, extra = str(entry["name"]), bool(entry["extra"])
        levels.append(Level(name=name, codec=codec, extra=extra, recalled=recalled))
    return levels

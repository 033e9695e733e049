"""The levels one bundle offers at one split: what edge and cloud encode and decode with.

Level 0 is always `lossless`; the others follow in order of decreasing quality. A ladder with only
that level needs no tables; every other comes from a tables file that `splitpoint build` makes.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from codec.errors import EncodeError, FrameError
from codec.frame import (
    CodecKind,
    check_seed,
    max_payload_bytes,
    pack_frame,
    peek_level,
    unpack_frame,
)
from codec.lossless import decode_lossless, encode_lossless
from codec.rows import RowCodec, Rows, TokenIds, check_rows, check_token_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class LosslessCodec:
    """`codec.lossless` as a level."""

    hidden_size: int
    kind: CodecKind = CodecKind.LOSSLESS

    def encode(self, rows: Rows, token_ids: TokenIds) -> bytes:
        """See RowCodec."""
        return encode_lossless(rows, token_ids)

    def decode(self, payload: bytes, num_rows: int, token_ids: TokenIds) -> Rows:
        """See RowCodec."""
        return decode_lossless(payload, num_rows, self.hidden_size, token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One rung: its name and its coder. An extra level is usable by name but not on the ladder."""

    name: str
    codec: RowCodec
    extra: bool = False


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Encode and decode rows at any of the named levels.

    `levels[0]` is lossless. `tables_sha256` names the tables both sides must share; frames made
    with others are refused. `safe_level` takes the frames another level declines.
    """

    hidden_size: int
    levels: tuple[Level, ...]
    tables_sha256: str
    safe_level: str = "lossless"

    @classmethod
    def lossless(cls, hidden_size: int) -> "Ladder":
        """The ladder that has level `lossless` and nothing else."""
        level = Level(name="lossless", codec=LosslessCodec(hidden_size=hidden_size))
        digest = hashlib.sha256(b"lossless").hexdigest()
        return cls(hidden_size=hidden_size, levels=(level,), tables_sha256=digest)

    @classmethod
    def load(cls, path: Path | str, *, hidden_size: int) -> "Ladder":
        """Read a tables file. Raises TablesError if it is damaged or for another width."""
        from codec.tables import load_ladder

        return load_ladder(Path(path), hidden_size=hidden_size)

    @property
    def names(self) -> tuple[str, ...]:
        """The ladder proper, best quality first; the first is `lossless`."""
        return tuple(level.name for level in self.levels if not level.extra)

    @property
    def extra_names(self) -> tuple[str, ...]:
        """Levels beside the ladder: comparison codecs and the safe level of strange frames."""
        return tuple(level.name for level in self.levels if level.extra)

    @cached_property
    def _seed(self) -> int:
        return check_seed(self.hidden_size, self.tables_sha256)

    def encode(self, level: str, rows: Rows, token_ids: TokenIds) -> bytes:
        """One frame of rows float32 [T, D] whose input tokens were token_ids int64 [T].

        Raises EncodeError for an unknown level, a wrong shape or dtype, NaN or infinity. Where the
        rows lie so far from a level's model that it would not save anything, the frame is made at
        `safe_level` instead; `level_of` tells.
        """
        check_rows(rows, token_ids, self.hidden_size)
        index = self._index(level)
        payload = self.levels[index].codec.encode(rows, token_ids)
        if payload is None:
            index = self._index(self.safe_level)
            payload = self.levels[index].codec.encode(rows, token_ids)
        if payload is None:
            index = 0
            payload = encode_lossless(rows, token_ids)
        return pack_frame(self.levels[index].codec.kind, index, len(rows), payload, self._seed)

    def decode(self, frame: bytes, *, num_rows: int, token_ids: TokenIds) -> Rows:
        """The rows of a frame, float32 [num_rows, D]. FrameError, nothing else, on bad bytes.

        num_rows and token_ids [num_rows] come from the message around the frame and are the
        session's own: nothing larger than num_rows x D is ever allocated.
        """
        check_token_ids(token_ids, num_rows, FrameError)
        if len(frame) > max_payload_bytes(num_rows, self.hidden_size):
            raise FrameError(f"frame of {len(frame)} bytes is too long for {num_rows} rows")
        parsed = unpack_frame(frame, self._seed)
        if parsed.num_rows != num_rows:
            raise FrameError(f"frame holds {parsed.num_rows} rows, expected {num_rows}")
        codec = self._checked(parsed.kind, parsed.level_index).codec
        rows = codec.decode(parsed.payload, num_rows, token_ids)
        if not np.isfinite(rows).all():
            raise FrameError("frame decodes to NaN or infinity")
        return rows

    def level_of(self, frame: bytes) -> str:
        """Name of the level a frame says it was made at. FrameError if it is none of ours."""
        return self._checked(*peek_level(frame)).name

    def _checked(self, kind: CodecKind, index: int) -> Level:
        if index >= len(self.levels) or self.levels[index].codec.kind is not kind:
            raise FrameError(f"frame of codec {kind.name.lower()} at level {index}: no such level")
        return self.levels[index]

    def _index(self, level: str) -> int:
        for index, candidate in enumerate(self.levels):
            if candidate.name == level:
                return index
        raise EncodeError(
            f"no level {level!r}; this ladder has {', '.join(self.names + self.extra_names)}"
        )

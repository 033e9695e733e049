"""All kinds of codec, each listed once, and the answers to questions about a level by its name.

A new kind is a file of its own, a line in `KINDS`, and a line in this folder's README.md. Nothing
here is on the path of a frame: a ladder's levels hold their coders.
"""

from __future__ import annotations

from typing import Final

from codec.errors import TablesError
from codec.frame import MAX_KINDS, MIXED, MIXED_RECALLED, RECALLED
from codec.levels.base import CodecKind, Entry, LadderTables, LevelSpec
from codec.levels.calibrated_kind import CALIBRATED
from codec.levels.lossless import LOSSLESS
from codec.levels.tabq_kind import TABQ
from codec.rows import RowCodec

# In the order in which a tables file lists their levels.
KINDS: Final[tuple[CodecKind, ...]] = (LOSSLESS, CALIBRATED, TABQ)

# The levels that `splitpoint build` makes: the ladder, and those usable by name only.
LADDER_LEVELS: Final[tuple[LevelSpec, ...]] = tuple(
    level for kind in KINDS if not kind.beside_ladder for level in kind.levels
)
EXTRA_LEVELS: Final[tuple[LevelSpec, ...]] = tuple(
    level for kind in KINDS if kind.beside_ladder for level in kind.levels
)
# Takes the rows that another level declines.
SAFE_LEVEL: Final = TABQ.levels[0].name


def kind_of(level_name: str) -> CodecKind:
    """The kind of a level. A name that no kind claims counts as calibrated, the dearest to run."""
    return next((kind for kind in KINDS if kind.has_level(level_name)), CALIBRATED)


def rotation_bytes(hidden_size: int) -> int:
    """Bytes that the tables of a whole ladder keep resident, whichever level is in use."""
    return sum(kind.rotation_bytes(hidden_size) for kind in KINDS)


def coder_of(entry: Entry, tables: LadderTables) -> RowCodec:
    """The coder of one level's entry in a tables file.

    Raises TablesError, KeyError, TypeError or ValueError on an entry that makes no sense.
    """
    for kind in KINDS:
        if kind.in_tables and kind.name == entry["kind"]:
            return kind.read(entry, tables)
    raise TablesError(f"level {entry['name']!r} of unknown kind {entry['kind']!r}")


def check_kinds(kinds: tuple[CodecKind, ...]) -> None:
    """Raises ValueError where two kinds share a number, a name or a level's name."""
    numbers = [kind.number for kind in kinds]
    free = set(range(MAX_KINDS)) - {MIXED, RECALLED, MIXED_RECALLED}
    if len(set(numbers)) < len(kinds) or not free.issuperset(numbers):
        raise ValueError(f"numbers of codec kinds {numbers}: each its own of {sorted(free)}")
    if len({kind.name for kind in kinds}) < len(kinds):
        raise ValueError(f"names of codec kinds {[kind.name for kind in kinds]} repeat")
    for kind in kinds:
        for level in kind.levels:
            claimed = [other.name for other in kinds if other.has_level(level.name)]
            if claimed != [kind.name]:
                raise ValueError(f"level {level.name!r} of {kind.name} is claimed by {claimed}")


check_kinds(KINDS)

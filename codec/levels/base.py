"""What a kind of codec is, and what is known of its levels before anything is measured.

A kind lives in a file of its own (`codec.levels.calibrated_kind` is one) and is listed in
`codec.levels.registry`. Whoever builds, prices or fits a level asks its kind; nobody asks a name.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from codec.arrays import Arrays
from codec.entropy.integers import Families
from codec.levels.split_model import FittedSplit, SplitModel
from codec.rows import RowCodec

Entry = dict[str, Any]  # one level in a tables file's header


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelSpec:
    """One level that `splitpoint build` makes, and what is assumed of it until it is certified.

    bits_per_element: of one-row frames. quality_loss_pct: rise of perplexity. target_kl: the loss
    that calibration aims at, KL in nats a token (0: nothing to aim).
    """

    name: str
    bits_per_element: float
    quality_loss_pct: float
    target_kl: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CoderSeconds:
    """Seconds of encoding and of decoding a frame: a fixed part, and a part an element."""

    encode_fixed_s: float
    encode_s_per_element: float
    decode_fixed_s: float
    decode_s_per_element: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderTables:
    """What a tables file holds besides its levels: the arrays, and the split's model if any."""

    arrays: Arrays
    model: SplitModel | None
    hidden_size: int


class CodecKind(ABC):
    """One kind of codec. An instance has no state; `codec.levels.registry` holds one of each.

    name: in tables files and in device profiles. number: in frames, 0 to 7, not 3. level_pattern:
    what its levels are called. levels: those that `splitpoint build` makes, best quality first.
    seconds: assumed for any of its levels where no profile has timed the kind.
    trial_kls: losses, ascending, of the levels that calibration tries on held-out text.
    beside_ladder: its levels are usable by name, but are never chosen at run time.
    in_tables: levels come from a tables file; False for the one level that needs no tables.
    """

    name: ClassVar[str]
    number: ClassVar[int]
    level_pattern: ClassVar[re.Pattern[str]]
    levels: ClassVar[tuple[LevelSpec, ...]]
    seconds: ClassVar[CoderSeconds]
    trial_kls: ClassVar[tuple[float, ...]] = ()
    beside_ladder: ClassVar[bool] = False
    in_tables: ClassVar[bool] = True

    def has_level(self, level_name: str) -> bool:
        """Whether a level of this name is of this kind."""
        return self.level_pattern.fullmatch(level_name) is not None

    @property
    def most_bits_per_element(self) -> float:
        """Assumed bits an element of its dearest level."""
        return max(level.bits_per_element for level in self.levels)

    def prediction_bytes(self, vocab_size: int, hidden_size: int) -> int:
        """Bytes of mapped tables, of which each token touches a row. 0: it has none."""
        return 0

    def rotation_bytes(self, hidden_size: int) -> int:
        """Bytes of its tables that stay resident once a ladder is loaded. 0: it has none."""
        return 0

    @abstractmethod
    def read(self, entry: Entry, tables: LadderTables) -> RowCodec:
        """The coder of one level's entry in a tables file.

        Raises TablesError, KeyError, TypeError or ValueError on an entry that makes no sense.
        """

    @abstractmethod
    def fit(self, name: str, target_kl: float, split: FittedSplit) -> tuple[Entry, Arrays]:
        """A level that loses about `target_kl`: its entry in a tables file, and its arrays.

        The entry has the keys name, kind and extra (whether the level is beside the ladder), and
        whatever else `read` needs. A kind with nothing to fit ignores target and split. An array
        of one level has a name that begins with the level's.
        """

    @abstractmethod
    def synthetic(self, model: SplitModel, families: Families) -> RowCodec:
        """A coder of typical cost, over made-up tables, for measuring speed."""

"""Which of a bundle's codec tables an answer is sent under, by what the prompt's beginning costs.

The prompt's first rows are computed, encoded under each of the tables, and the fewest bytes win;
the first tables, the bundle's own, where several take as few. Tables that were fitted to text of
the prompt's kind take fewer bits (`splitpoint calibrate`). The bytes say nothing of the loss: a
certificate holds for text of the kind that it was measured on.

The choice is made once, before the session opens, and holds to the answer's end: a replay and a
split that moves keep it. It is remembered, so a chat's next turn computes nothing for it. A server
that does not hold the chosen tables refuses them; then the answer begins anew with the first ones.

Source: ours.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from codec.ladder import Ladder
from codec.levels.lossless import LOSSLESS
from edge.errors import RefusedError
from edge.generation.parts import AnswerParts
from edge.generation.token_source import FrontSegment, NewToken, OnStep, TokenSource
from optimizer.artifacts.codec_tables import DEFAULT_TABLES
from protos.limits import TABLES_REFUSED

_log: Final = logging.getLogger(__name__)
_MOST_REMEMBERED: Final = 64

_Key: TypeAlias = tuple[tuple[int, ...], tuple[tuple[str, str], ...], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TablesChoice:
    """The name of the chosen tables. num_bytes: of the first rows' frame under each, by name; empty
    where there was nothing to choose."""

    name: str
    num_bytes: Mapping[str, int] = field(default_factory=dict)


class HeldRows:
    """A front whose first rows are computed already: whoever asks for just these gets them.

    front: holds the tokens [T] in its cache and nothing else. rows: theirs, [T, D]. See
    FrontSegment for the methods.
    """

    def __init__(
        self,
        front: FrontSegment,
        token_ids: npt.NDArray[np.int64],
        rows: npt.NDArray[np.float32],
    ) -> None:
        self._front = front
        self._token_ids = token_ids
        self._rows: npt.NDArray[np.float32] | None = rows

    @property
    def num_tokens(self) -> int:
        """As if nothing was computed, until the rows were asked for."""
        return self._front.num_tokens if self._rows is None else 0

    def forward(self, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """The rows that are there where they are asked for, else the front's."""
        rows, self._rows = self._rows, None
        if rows is None:
            return self._front.forward(token_ids)
        if np.array_equal(token_ids, self._token_ids):
            return rows
        self._front.rollback(0)
        return self._front.forward(token_ids)

    def rollback(self, num_tokens: int) -> None:
        """Of an empty cache there is nothing to forget."""
        if self._rows is None:
            self._front.rollback(num_tokens)

    def keep_steps(self, steps: Sequence[Sequence[int]]) -> None:
        """Where nothing is to be kept, the rows still serve for the first step."""
        if steps or self._rows is None:
            self._rows = None
            self._front.keep_steps(steps)


class TablesChooser:
    """Chooses for one device, and remembers. Safe from several threads.

    ladders: by name of the tables, then by split; the first ones are taken where nothing else
    tells. num_rows: the most first rows of a prompt to weigh.
    """

    def __init__(self, ladders: Mapping[str, Mapping[int, Ladder]], *, num_rows: int) -> None:
        self._ladders = ladders
        self._num_rows = num_rows
        self._remembered: OrderedDict[_Key, TablesChoice] = OrderedDict()
        self._refused: set[str] = set()
        self._lock = threading.Lock()

    def choose(
        self, front: FrontSegment, prompt_ids: Sequence[int], *, split: int, levels: dict[str, str]
    ) -> tuple[TablesChoice, FrontSegment]:
        """The tables for a prompt, and the front to go on with.

        front: runs the layers below `split`. levels: at which level the answer begins, by the names
        of the tables that may be taken.
        """
        with self._lock:
            may = {name: level for name, level in levels.items() if name not in self._refused}
        first = next(iter(may or levels))
        if len(may) < 2 or set(may.values()) == {LOSSLESS.name}:
            return TablesChoice(name=first), front
        ids = tuple(prompt_ids[: self._num_rows])
        key = (ids, tuple(may.items()), split)
        with self._lock:
            if (known := self._remembered.get(key)) is not None:
                self._remembered.move_to_end(key)
                return known, front
        token_ids = np.asarray(ids, dtype=np.int64)
        front.rollback(0)
        rows = front.forward(token_ids)
        num_bytes = {
            name: len(self._ladders[name][split].encode(level, rows, token_ids))
            for name, level in may.items()
        }
        # The first of the cheapest: `min` keeps the order of the names.
        chosen = TablesChoice(name=min(num_bytes, key=num_bytes.__getitem__), num_bytes=num_bytes)
        with self._lock:
            self._remembered[key] = chosen
            while len(self._remembered) > _MOST_REMEMBERED:
                self._remembered.popitem(last=False)
        return chosen, HeldRows(front, token_ids, rows)

    def refused(self, name: str, reason: str) -> None:
        """A server does not hold these tables: do not choose them again. Said once."""
        with self._lock:
            is_new = name not in self._refused
            self._refused.add(name)
        if is_new:
            _log.warning("going on with the %s tables: %s", DEFAULT_TABLES, reason)


# Begins the choice: gives it, and the front to go on with.
Choose: TypeAlias = Callable[[Sequence[int]], tuple[TablesChoice, FrontSegment]]


class ChosenTables(AnswerParts):
    """An answer whose tables are chosen when its prompt is known.

    choose: by the prompt's ids. part_of: makes the answer with the tables of a name, on a front.
    default: the tables to take where the server refuses others; None: it has to hold them.
    """

    def __init__(
        self,
        *,
        choose: Choose,
        part_of: Callable[[str, FrontSegment], TokenSource],
        chooser: TablesChooser,
        default: str | None,
    ) -> None:
        super().__init__()
        self._choose = choose
        self._part_of = part_of
        self._chooser = chooser
        self._default = default

    def move_to(self, split: int) -> None:
        """See AnswerParts: the answer itself moves."""
        part: object = self._current
        if isinstance(part, AnswerParts):
            part.move_to(split)
        else:
            super().move_to(split)

    def tokens(self, prompt_ids: Sequence[int], on_step: OnStep) -> Generator[NewToken, None, None]:
        """Yield new tokens; raises what the answer raises (see RemoteGeneration)."""
        choice, front = self._choose(prompt_ids)
        self.tables, self.tables_bytes = choice.name, choice.num_bytes
        num_tokens = 0
        try:
            for token in self._answer(front, prompt_ids, on_step):
                num_tokens += 1
                yield token
            return
        except RefusedError as error:
            is_about_them = TABLES_REFUSED in str(error) and choice.name != self._default
            if num_tokens or not is_about_them or self._default is None:
                raise
            self._chooser.refused(choice.name, str(error))
        self.tables = self._default
        yield from self._answer(front, prompt_ids, on_step)

    def _answer(
        self, front: FrontSegment, prompt_ids: Sequence[int], on_step: OnStep
    ) -> Generator[NewToken, None, None]:
        """The answer with the tables that are chosen now."""
        part = self.begin(self._part_of(self.tables, front))
        try:
            with closing(part.tokens(prompt_ids, on_step)) as source:
                yield from source
        finally:
            if isinstance(part, AnswerParts):
                self.take_counts(part)
                self.detail = part.detail

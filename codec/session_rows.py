"""The rows of one session that both sides hold, and which of them a new row resembles.

A session repeats its tokens. The row of a token resembles the row that the same token had before,
the more so the more tokens before it are the same too. Both sides hold the rows as they arrived, so
a coder can send the difference alone (`codec.levels.recalled`).

Everything here is a function of the tokens and decoded rows at the positions before a frame. Which
frames brought them, and how many rows a frame had, makes no difference. A frame that begins lower
than the last one ended takes the place of what was there. So rows of refused drafts are gone, and
a replayed session holds the same rows, bit for bit.

Source: ours. Longest matching contexts: Cleary & Witten 1984, doi 10.1109/TCOM.1984.1096090.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from codec.arrays import I16, I64, U8, Mask

LONGEST_CONTEXT: Final = 4  # tokens that are compared, the row's own among them
MAX_HELD_ROWS: Final = 4096  # rows at later positions are not held; they still refer to these
# The index of a token and the check before it, as Python's objects: 361 where no token repeats.
_INDEX_BYTES: Final = 400
_MOST_COMPARED: Final = 16  # places with the same two tokens, the latest first


class References(NamedTuple):
    """Which earlier row each of T rows resembles.

    positions: [T], -1: none. contexts: [T] uint8, how many tokens up to each are the same, at most
    LONGEST_CONTEXT; 0: none.
    """

    positions: I64
    contexts: U8

    def of(self, rows: Mask) -> References:
        """Those of the rows under a mask [T]."""
        return References(self.positions[rows], self.contexts[rows])


class HeldBeginning(NamedTuple):
    """The first positions of a session: tokens, held values [at most T, D], and which [T] are."""

    tokens: tuple[int, ...]
    values: I16
    taken: Mask


def held_bytes(num_tokens: int, hidden_size: int) -> int:
    """The most bytes that the rows of a session of so many tokens take."""
    rows = min(num_tokens, MAX_HELD_ROWS) * hidden_size * np.dtype(np.int16).itemsize
    return rows + num_tokens * _INDEX_BYTES


class RowHistory:
    """See the module's docstring. Not safe from several threads, but reading changes nothing.

    hidden_size: D. Values are whole numbers of a unit that the tables name.
    """

    def __init__(self, hidden_size: int) -> None:
        self._tokens: list[int] = []
        self._singles: dict[int, list[int]] = {}  # positions of held rows, ascending
        self._pairs: dict[tuple[int, int], list[int]] = {}
        self._values: I16 = np.empty((0, hidden_size), dtype=np.int16)
        self._held: list[bool] = []
        self._chain = [0]  # checks over all positions before each

    @property
    def num_tokens(self) -> int:
        """Positions that are known of, with rows or without."""
        return len(self._tokens)

    def references(self, first_position: int, token_ids: Sequence[int], taken: Mask) -> References:
        """What the rows of a frame resemble: earlier rows of the session or of the frame itself.

        token_ids [T] stand from first_position on, at most num_tokens. taken [T]: the frame's rows
        that others may refer to.
        """
        path = [*self._tokens[max(0, first_position - LONGEST_CONTEXT) : first_position]]
        begin = first_position - len(path)  # of `path`
        path.extend(int(token) for token in token_ids)
        singles: dict[int, int] = {}
        pairs: dict[tuple[int, int], list[int]] = {}
        positions = np.full(len(token_ids), -1, dtype=np.int64)
        contexts = np.zeros(len(token_ids), dtype=np.uint8)
        for index, at in enumerate(range(first_position, first_position + len(token_ids))):
            token = path[at - begin]
            pair = (path[at - begin - 1], token) if at > 0 else None
            best, length = self._latest(singles, token, first_position), 0
            if best >= 0:
                length = 1
                if pair is not None:
                    places = pairs.get(pair, [])[-_MOST_COMPARED:][::-1]
                    places += self._earlier(pair, first_position, _MOST_COMPARED - len(places))
                    best, length = self._longest(path, begin, at, places, (best, length))
            positions[index], contexts[index] = best, length
            if taken[index] and at < MAX_HELD_ROWS:
                singles[token] = at
                if pair is not None:
                    pairs.setdefault(pair, []).append(at)
        return References(positions, contexts)

    def check_before(self, position: int) -> int:
        """CRC-32 over the tokens and the held rows before a position; two sides have the same."""
        return self._chain[position]

    def values_at(self, positions: I64) -> I16:
        """Values [n, D] of held rows."""
        return np.asarray(self._values[positions])

    def extend(
        self, first_position: int, token_ids: Sequence[int], values: I16 | None, taken: Mask | None
    ) -> None:
        """The next rows, in place of whatever stood from first_position on.

        values: [T, D]; taken [T]: which rows have some. None: none has.
        """
        if first_position > len(self._tokens):
            raise ValueError(f"rows at {first_position} behind {len(self._tokens)}")
        self._truncate(first_position)
        end = first_position + len(token_ids)
        kept = min(end, MAX_HELD_ROWS)
        if values is not None and kept > first_position:
            self._reserve(kept)
            part = values[: kept - first_position]  # of a beginning there may be fewer
            self._values[first_position : first_position + len(part)] = part
        for index, token in enumerate(map(int, token_ids)):
            at = first_position + index
            held = taken is not None and bool(taken[index]) and at < MAX_HELD_ROWS
            if held:
                self._singles.setdefault(token, []).append(at)
                if at > 0:
                    self._pairs.setdefault((self._tokens[at - 1], token), []).append(at)
            self._tokens.append(token)
            self._held.append(held)
            row = self._values[at].tobytes() if held else b""
            self._chain.append(zlib.crc32(token.to_bytes(8, "little") + row, self._chain[-1]))

    def beginning(self, num_tokens: int) -> HeldBeginning:
        """The first positions, for other sessions that begin with them.

        Not copied: no row may take the place of one of these any more.
        """
        held = np.array(self._held[:num_tokens], dtype=np.bool_)
        return HeldBeginning(tuple(self._tokens[:num_tokens]), self._values[:num_tokens], held)

    @classmethod
    def behind(cls, beginning: HeldBeginning) -> RowHistory:
        """A session that begins with these."""
        rows = cls(beginning.values.shape[1])
        rows.extend(0, beginning.tokens, beginning.values, beginning.taken)
        return rows

    def _truncate(self, num_tokens: int) -> None:
        for at in range(len(self._tokens) - 1, num_tokens - 1, -1):
            if self._held[at]:
                self._singles[self._tokens[at]].pop()
                if at > 0:
                    self._pairs[self._tokens[at - 1], self._tokens[at]].pop()
        del self._tokens[num_tokens:], self._held[num_tokens:], self._chain[num_tokens + 1 :]

    def _reserve(self, num_rows: int) -> None:
        if num_rows > len(self._values):
            size = min(MAX_HELD_ROWS, max(num_rows, 2 * len(self._values), 64))
            grown = np.zeros((size, self._values.shape[1]), dtype=np.int16)
            grown[: len(self._values)] = self._values
            self._values = grown

    def _latest(self, singles: dict[int, int], token: int, below: int) -> int:
        if token in singles:
            return singles[token]
        places = self._singles.get(token, ())
        index = bisect_left(places, below)
        return places[index - 1] if index else -1

    def _earlier(self, pair: tuple[int, int], below: int, most: int) -> list[int]:
        """Held places of a pair before a position, the latest first."""
        places = self._pairs.get(pair)
        if not places or most <= 0:
            return []
        end = bisect_left(places, below)
        return places[max(0, end - most) : end][::-1]

    def _longest(
        self, path: list[int], begin: int, at: int, places: list[int], best: tuple[int, int]
    ) -> tuple[int, int]:
        """The place with the longest common context, the latest among equals, and its length."""
        for place in places:
            length = 2
            while length < LONGEST_CONTEXT and length <= place:
                before = place - length
                token = path[before - begin] if before >= begin else self._tokens[before]
                if token != path[at - length - begin]:
                    break
                length += 1
            if length > best[1]:
                best = (place, length)
                if length == LONGEST_CONTEXT:
                    break
        return best

"""The trellis loops without a compiler: the reference that `kernel.c` must match bit for bit.

The path search steps through the columns with all rows at once; one lane is a plain Python loop,
many lanes step together. See `codec.entropy.trellis` for the format.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from codec.arrays import F32, I8, I32, I64, U8, U16, U32
from codec.entropy.integers import ALPHABET, ESCAPE, NUM_FAMILIES, REACH, SHIFTS
from codec.entropy.rans import Models
from codec.entropy.rans_numpy import LOWER, PRECISION
from codec.errors import FrameError

MAX_CODE: Final = (1 << 24) - 1
LARGEST_TARGET: Final = 1 << 28
NEXT: Final = ((0, 2), (5, 7), (1, 3), (6, 4), (2, 0), (4, 6), (3, 1), (7, 5))
_MAX_COST: Final = 65_535
_FAR: Final = 1 << 29
_LOUDEST: Final = 1 << 22
_ZERO_WITHIN: Final = 256  # units: nearer than this, level 0 is tried too
# Into state s lead two branches: where each comes from, and whether its code is odd.
_FROM: Final = np.array([[0, 4], [2, 6], [0, 4], [2, 6], [3, 5], [1, 7], [3, 5], [1, 7]])
_ODD: Final = np.array([[0, 1], [0, 1], [1, 0], [1, 0], [1, 0], [0, 1], [0, 1], [1, 0]])
_BRANCH: Final = 2 * (_FROM & 1) + _ODD  # which of the four candidates a branch takes


def families(base: U8, offsets: I8) -> I64:
    """Family of every value, [T, D]."""
    family = base.astype(np.int64) + offsets.astype(np.int64)[:, None]
    return np.asarray(np.clip(family, 0, NUM_FAMILIES - 1))


def _symbols(codes: I64, family: I64) -> I64:
    high = (codes >> SHIFTS[family]) + REACH
    return np.where((high < 0) | (high > 2 * REACH), ESCAPE, high)


def _cost(costs: I64, family: I64, side: int, codes: I64, distance: I64) -> I64:
    of_code = costs[(2 * family + side) * ALPHABET + _symbols(codes, family)]
    return np.asarray(np.minimum(of_code + distance * distance, _MAX_COST))


def loudness(targets: I32, weights: I32) -> I64:
    """Sum along each row of |target|, at most 2^22, times its weight, [T]; exact in integers."""
    size = np.minimum(np.abs(targets.astype(np.int64)), _LOUDEST)
    return np.asarray((size * weights).sum(axis=1))


def quantize(costs: U16, targets: I32, base: U8, offsets: I8) -> tuple[I32, U8, I32]:
    """The path of least total cost. See `codec.entropy.trellis.quantize`."""
    family, flat = families(base, offsets), costs.astype(np.int64).reshape(-1)
    wide = targets.astype(np.int64)
    away, sign = np.abs(wide), np.where(wide < 0, -1, 1)
    if away.max(initial=0) > LARGEST_TARGET:
        raise ValueError("a target is too large for the trellis")
    m0, m1, m2, m3 = away + 64 >> 7, away >> 7, away + 96 >> 7, away + 32 >> 7
    sizes = [2 * m0, 2 * m1 + 1, 2 * m2, 2 * m3 + 1]
    errors = [
        away - 128 * m0,
        away - 128 * m1 - 64,
        np.where(m2 > 0, away - 128 * m2 + 32, away),
        away - 128 * m3 - 32,
    ]
    codes = np.stack([size * sign for size in sizes], axis=-1)  # [T, D, 4]
    cost = np.stack(
        [_cost(flat, family, i // 2, codes[..., i], errors[i]) for i in range(4)], axis=-1
    )
    near = away < _ZERO_WITHIN
    for i in (0, 2):
        zero = _cost(flat, family, i // 2, np.zeros_like(wide), np.minimum(away, _ZERO_WITHIN))
        better = near & (zero < cost[..., i])
        codes[..., i][better] = 0
        cost[..., i][better] = zero[better]
    num_rows, width = targets.shape
    total = np.full((num_rows, 8), _FAR, dtype=np.int64)
    total[:, 0] = 0
    later = np.empty((width, num_rows, 8), dtype=np.bool_)
    for d in range(width):
        branches = total[:, _FROM] + cost[:, d][:, _BRANCH]  # [T, 8, 2]
        later[d] = branches[..., 1] < branches[..., 0]
        total = branches.min(axis=2)
    rows = np.arange(num_rows)
    state = total.argmin(axis=1)
    found = np.empty((num_rows, width), dtype=np.int32)
    side = np.empty((num_rows, width), dtype=np.int64)
    for d in range(width - 1, -1, -1):
        branch = later[d, rows, state].astype(np.int64)
        found[:, d] = codes[rows, d, _BRANCH[state, branch]]
        state = _FROM[state, branch]
        side[:, d] = state & 1
    escapes = (_symbols(found.astype(np.int64), family) == ESCAPE).sum(axis=1)
    return found, (2 * family + side).astype(np.uint8), escapes.astype(np.int32)


def encode(cdf: U16, model_ids: U8, codes: I32, states: U32) -> U16:
    """Words as the decoder reads them; states [L], the first states in, the last ones out."""
    family = (model_ids >> 1).astype(np.int64)
    wide = codes.astype(np.int64)
    symbols = _symbols(wide, family)
    starts = cdf[model_ids, symbols].astype(np.int64)
    freqs = cdf[model_ids, symbols + 1].astype(np.int64) - starts
    escaped = symbols == ESCAPE
    # Up to two plain pieces before the symbol, in the encoder's backward order.
    first = np.where(escaped, wide >> 16 & 0xFFFF, 0)
    first_bits = np.where(escaped, 16, 0)
    second_bits = np.where(escaped, 16, SHIFTS[family].astype(np.int64))
    second = wide & (1 << second_bits) - 1
    lanes, words = len(states), list[int]()
    for begin in range((len(codes) - 1) // lanes * lanes, -1, -lanes):
        part = slice(begin, begin + lanes)
        x = states[: len(codes[part])].astype(np.int64)
        for d in range(codes.shape[1] - 1, -1, -1):
            steps = [
                (first[part, d], first_bits[part, d]),
                (second[part, d], second_bits[part, d]),
                (starts[part, d], None),
            ]
            pieces = []
            for value, bits in steps:
                freq = freqs[part, d]
                limit = freq << 32 - PRECISION if bits is None else 1 << 32 - bits
                full = x >= limit
                pieces.append((full, x & 0xFFFF))
                x = np.where(full, x >> 16, x)
                if bits is None:
                    x = (x // freq << PRECISION) + x % freq + value
                else:
                    x = x << bits | value
            # The kernel finishes a lane's value before it turns to the lane before it.
            for lane in range(len(x) - 1, -1, -1):
                words.extend(int(word[lane]) for full, word in pieces if full[lane])
        states[: len(x)] = x
    return np.array(words[::-1], dtype=np.uint16)


def decode(
    models: Models, centres: F32, base: U8, offsets: I8, states: U32, body: U8
) -> tuple[F32, int]:
    """Values [T, D] and words read; states [L] are left as they end. Raises FrameError."""
    reader = _Words(words=body[: len(body) // 2 * 2].view("<u2").tolist(), lanes=len(states))
    family = families(base, offsets)
    codes = np.empty(family.shape, dtype=np.int64)
    sides = np.empty(family.shape, dtype=np.int64)
    tables = [row.tolist() for row in models.cdf]
    lut = models.lut.tolist()
    shifts = SHIFTS.tolist()
    lanes, num_rows = len(states), len(family)
    left = states.tolist()
    mask = (1 << PRECISION) - 1
    for begin in range(0, num_rows, lanes):
        rows = range(begin, min(begin + lanes, num_rows))
        state = [0] * lanes
        families_here = family[begin : begin + lanes].tolist()
        for d in range(len(base)):
            for lane, t in enumerate(rows):
                kind, side, x = families_here[lane][d], state[lane] & 1, left[lane]
                row, slot = tables[2 * kind + side], x & mask
                symbol = lut[2 * kind + side][slot >> PRECISION - 8]
                while row[symbol + 1] <= slot:
                    symbol += 1
                x = (row[symbol + 1] - row[symbol]) * (x >> PRECISION) + slot - row[symbol]
                x = reader.refill(x)
                if symbol == ESCAPE:
                    whole = x & 0xFFFF
                    x = reader.refill(x >> 16)
                    whole |= (x & 0xFFFF) << 16
                    x = reader.refill(x >> 16)
                    code = whole - (1 << 32) if whole >> 31 else whole
                    if abs(code) > MAX_CODE:
                        raise FrameError("escaped code is larger than any encoder makes")
                else:
                    code, shift = symbol - REACH, shifts[kind]
                    if shift:
                        code = (code << shift) + (x & (1 << shift) - 1)
                        x = reader.refill(x >> shift)
                left[lane] = x
                codes[t, d], sides[t, d] = code, side
                state[lane] = NEXT[state[lane]][code & 1]
    states[:] = left
    size = np.abs(codes)
    level = 2 * size - np.where(size > 0, sides, 0)
    value = level.astype(np.float32)
    value += centres.reshape(-1)[4 * family + np.minimum(level, 3)]
    return np.where(codes < 0, -value, value), reader.at


class _Words:
    """The word stream: gives the next word to a state that has fallen below LOWER."""

    def __init__(self, *, words: list[int], lanes: int) -> None:
        self.at = 0
        self._words = words
        self._lanes = lanes

    def refill(self, x: int) -> int:
        """x, or x with one more word; a single lane goes on without when there are none."""
        if x >= LOWER:
            return x
        if self.at < len(self._words):
            self.at += 1
            return x << 16 | self._words[self.at - 1]
        if self._lanes > 1:
            raise FrameError("entropy-coded stream ends too early")
        return x

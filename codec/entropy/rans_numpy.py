"""The rANS loops without a compiler: the reference that `kernel.c` must match bit for bit.

One lane is a plain Python loop (a decode frame has a few hundred symbols); many lanes step together
as numpy vectors. See `codec.entropy.rans` for the format.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from codec.arrays import U8, U16, U32

PRECISION: Final = 14
LOWER: Final = 1 << 16


def encode(cdf: U16, model_ids: U8, symbols: U8, num_lanes: int) -> tuple[U32, U16]:
    """model_ids, symbols [n] to final states [num_lanes] and words, as the decoder reads them."""
    starts = cdf[model_ids, symbols].astype(np.uint64)
    freqs = cdf[model_ids, symbols.astype(np.int64) + 1].astype(np.uint64) - starts
    if num_lanes == 1:
        return _encode_one(starts.tolist(), freqs.tolist())
    states = np.full(num_lanes, LOWER, dtype=np.uint64)
    chunks: list[U16] = []
    num_steps = -(-len(symbols) // num_lanes)
    for step in range(num_steps - 1, -1, -1):
        start = starts[step * num_lanes : (step + 1) * num_lanes]
        freq = freqs[step * num_lanes : (step + 1) * num_lanes]
        x = states[: len(start)]
        full = x >= freq << np.uint64(32 - PRECISION)
        chunks.append((x[full] & np.uint64(0xFFFF)).astype(np.uint16))
        x = np.where(full, x >> np.uint64(16), x)
        states[: len(start)] = (x // freq << np.uint64(PRECISION)) + x % freq + start
    words = np.concatenate(chunks[::-1]) if chunks else np.zeros(0, dtype=np.uint16)
    return states.astype(np.uint32), words


def decode(cdf: U16, model_ids: U8, states: U32, words: U16) -> tuple[U8, int, U32] | None:
    """Symbols [n], words read and the states left; None when the words run out."""
    if len(states) == 1:
        return _decode_one(cdf, model_ids, int(states[0]), words.tolist())
    num_lanes, at = len(states), 0
    x_all = states.astype(np.uint64)
    symbols = np.empty(len(model_ids), dtype=np.uint8)
    # An n-th lane that needs no word must still index something.
    padded = np.concatenate([words.astype(np.uint64), np.zeros(num_lanes, dtype=np.uint64)])
    for begin in range(0, len(model_ids), num_lanes):
        rows = cdf[model_ids[begin : begin + num_lanes]]  # [lanes, A + 1]
        x = x_all[: len(rows)]
        slot = x & np.uint64((1 << PRECISION) - 1)
        symbol = (rows <= slot[:, None]).sum(axis=1) - 1
        lanes = np.arange(len(rows))
        start = rows[lanes, symbol].astype(np.uint64)
        freq = rows[lanes, symbol + 1].astype(np.uint64) - start
        x = freq * (x >> np.uint64(PRECISION)) + slot - start
        short = x < LOWER
        order = at + np.cumsum(short) - 1
        if at + int(short.sum()) > len(words):
            return None
        x = np.where(short, x << np.uint64(16) | padded[np.maximum(order, 0)], x)
        at += int(short.sum())
        x_all[: len(rows)] = x
        symbols[begin : begin + num_lanes] = symbol
    return symbols, at, x_all.astype(np.uint32)


def _encode_one(starts: list[int], freqs: list[int]) -> tuple[U32, U16]:
    x, words = LOWER, []
    for start, freq in zip(reversed(starts), reversed(freqs), strict=True):
        if x >= freq << 32 - PRECISION:
            words.append(x & 0xFFFF)
            x >>= 16
        x = (x // freq << PRECISION) + x % freq + start
    return np.array([x], dtype=np.uint32), np.array(words[::-1], dtype=np.uint16)


def _decode_one(cdf: U16, model_ids: U8, x: int, words: list[int]) -> tuple[U8, int, U32] | None:
    mask, at = (1 << PRECISION) - 1, 0
    rows = {int(model): cdf[model].tolist() for model in np.unique(model_ids)}
    symbols = bytearray(len(model_ids))
    for index, model in enumerate(model_ids.tolist()):
        row, slot = rows[model], x & mask
        low, high = 0, len(row) - 1
        while high - low > 1:
            middle = low + high >> 1
            if row[middle] <= slot:
                low = middle
            else:
                high = middle
        x = (row[low + 1] - row[low]) * (x >> PRECISION) + slot - row[low]
        if x < LOWER:
            if at == len(words):
                return None
            x = x << 16 | words[at]
            at += 1
        symbols[index] = low
    return np.frombuffer(bytes(symbols), dtype=np.uint8), at, np.array([x], dtype=np.uint32)

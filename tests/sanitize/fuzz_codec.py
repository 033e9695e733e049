"""The codec's kernel on a corpus of valid, damaged and extreme input; run by `sanitize.py`.

The corpus is made from fixed seeds: streams that the encoders wrote, cut, flipped and replaced; and
symbols, models, codes and targets at and beyond the ends of their ranges. Every array has memory of
exactly its size, so the sanitizer reports whatever the kernel reads or writes beyond.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from codec.entropy.integers import ALPHABET, NUM_FAMILIES
from codec.entropy.rans import Models
from codec.entropy.trellis import LARGEST_TARGET, MAX_WIDTH
from codec.kernel.library import the_kernel
from tests.sanitize.guarded import Guarded, address

NUM_SEEDS: Final = 120
INT_MIN, INT_MAX = -(1 << 31), (1 << 31) - 1
_EXTREME_TARGETS = (0, 1, -1, 63, 64, 255, 256, LARGEST_TARGET, -LARGEST_TARGET)
_EXTREME_CODES = (0, 1, -1, 31, 32, -32, (1 << 24) - 1, 1 << 24, INT_MAX, INT_MIN)
Array = npt.NDArray[Any]


def main() -> None:
    """Run the whole corpus; AssertionError where a result is wrong."""
    for seed in range(NUM_SEEDS):
        rng = np.random.default_rng(seed)
        fuzz_rans(rng)
        fuzz_trellis(rng)
        fuzz_trellis_encoder(rng)
        fuzz_loudness(rng)
        fuzz_rows(rng)
    refuse_what_is_out_of_bounds()


def some_models(rng: np.random.Generator, num_models: int, alphabet: int) -> Models:
    """Tables as lopsided as they come: many symbols of frequency 1."""
    return Models.from_counts(rng.random((num_models, alphabet)) ** rng.integers(1, 60))


def damaged(rng: np.random.Generator, words: Array) -> Iterator[Array]:
    """The words themselves, cut short, with flipped bits, and others."""
    yield words
    yield words[:0]
    yield words[: len(words) // 2]
    flipped = words.copy()
    if len(flipped):
        flipped[rng.integers(len(flipped))] ^= 1 << int(rng.integers(16))
    yield flipped
    yield rng.integers(0, 1 << 16, len(words) + 3).astype(np.uint16)
    yield np.full(len(words), 0xFFFF, dtype=np.uint16)


def fuzz_rans(rng: np.random.Generator) -> None:
    """Encode, decode the same, then decode damage: it ends, inside the words and the alphabet."""
    kernel, alphabet = the_kernel(), int(rng.integers(2, 256))
    models = some_models(rng, int(rng.integers(1, 256)), alphabet)
    count, lanes = int(rng.integers(0, 400)), int(rng.integers(1, 65))
    with Guarded() as guarded:
        cdf, lut = guarded.copy(models.cdf), guarded.copy(models.lut)
        ids = guarded.copy(rng.integers(0, len(cdf), count).astype(np.uint8))
        symbols = guarded.copy(rng.integers(0, alphabet, count).astype(np.uint8))
        states = guarded.filled(lanes, np.uint32)
        out = guarded.filled(count, np.uint16)
        begin = (address(cdf), len(cdf), alphabet, address(ids))
        num_words = kernel.rans_encode(
            *begin, address(symbols), count, lanes, address(states), address(out), count
        )
        assert 0 <= num_words <= count
        if num_words:  # one word too few
            room = int(rng.integers(num_words))
            short, last = guarded.filled(room, np.uint16), guarded.filled(lanes, np.uint32)
            refused = kernel.rans_encode(
                *begin, address(symbols), count, lanes, address(last), address(short), room
            )
            assert refused == -1
        for number, words in enumerate(damaged(rng, out[count - num_words :])):
            back = guarded.filled(count, np.uint8)
            first = states if number < 4 else rng.integers(0, 1 << 32, lanes).astype(np.uint32)
            body, left = guarded.copy(words), guarded.copy(first)
            used = kernel.rans_decode(
                *(address(cdf), address(lut), len(cdf), alphabet, address(ids), address(back)),
                *(count, lanes, address(left), address(body), len(words)),
            )
            assert -1 <= used <= len(words)
            if used >= 0:
                assert (back < alphabet).all()
            if number == 0:
                assert used == num_words
                assert (back == symbols).all()


def fuzz_trellis(rng: np.random.Generator) -> None:
    """Quantize targets of every size, encode, decode; then decode damage."""
    kernel = the_kernel()
    num_rows, width = int(rng.integers(1, 6)), int(rng.integers(1, 70))
    models = some_models(rng, 2 * NUM_FAMILIES, ALPHABET)
    size = 10.0 ** rng.uniform(0, 8.4, (num_rows, width))
    targets = np.clip(rng.standard_normal(size.shape) * size, -LARGEST_TARGET, LARGEST_TARGET)
    targets = targets.astype(np.int32)
    some = rng.random(targets.shape) < 0.2
    targets[some] = rng.choice(_EXTREME_TARGETS, int(some.sum()))
    with Guarded() as guarded:
        cdf, lut = guarded.copy(models.cdf), guarded.copy(models.lut)
        base = guarded.copy(rng.integers(0, 256, width).astype(np.uint8))
        offsets = guarded.copy(rng.integers(-128, 128, num_rows).astype(np.int8))
        costs = rng.choice([0, 1, 5000, 65535], (2 * NUM_FAMILIES, ALPHABET)).astype(np.uint16)
        codes = guarded.filled((num_rows, width), np.int32)
        ids = guarded.filled((num_rows, width), np.uint8)
        result = kernel.trellis_quantize(
            *(address(guarded.copy(targets)), num_rows, width, address(base), address(offsets)),
            *(address(guarded.copy(costs)), address(codes), address(ids)),
            address(guarded.filled(num_rows, np.int32)),
            address(guarded.filled((width, 4), np.int32)),
            address(guarded.filled(width, np.uint8)),
        )
        assert result == 0
        lanes = int(rng.integers(1, 17))
        capacity, first = 3 * codes.size, 1 if lanes == 1 else 1 << 16
        states = guarded.copy(np.full(lanes, first, dtype=np.uint32))
        out = guarded.filled(capacity, np.uint16)
        num_words = kernel.trellis_encode(
            *(address(cdf), address(ids), address(codes), num_rows, width, lanes),
            *(address(states), address(out), capacity),
        )
        assert 0 <= num_words <= capacity
        centres = guarded.copy(rng.standard_normal((NUM_FAMILIES, 4)).astype(np.float32))
        for number, words in enumerate(damaged(rng, out[capacity - num_words :])):
            begin = states if number < 4 else rng.integers(0, 1 << 32, lanes).astype(np.uint32)
            left = guarded.copy(begin)
            used = kernel.trellis_decode(
                *(address(cdf), address(lut), address(base), address(offsets), address(centres)),
                *(address(guarded.filled((num_rows, width), np.float32)), num_rows, width, lanes),
                *(address(left), address(guarded.copy(words)), len(words)),
            )
            assert -1 <= used <= len(words)
            if number == 0:
                assert used == num_words
                assert (left == first).all()


def fuzz_rows(rng: np.random.Generator) -> None:
    """Rows of frames that hold anything, with tables of any size: finite rows, or strange."""
    blocks, size = int(rng.integers(1, 4)), int(rng.integers(1, 40))
    width, num_codes = blocks * size, int(rng.integers(0, 4))
    models = some_models(rng, 2 * NUM_FAMILIES, ALPHABET)
    num_rows = rng.choice([1, 1, 2, 8, 32, 33], int(rng.integers(1, 5))).astype(np.int32)
    lanes = rng.integers(1, 4, len(num_rows)).astype(np.int32)
    total = int(num_rows.sum())
    with Guarded() as guarded:
        sizes = [int(rng.integers(1, 3 * count * width + 40)) for count in num_rows]
        payloads = [guarded.copy(rng.integers(0, 256, size, np.uint8)) for size in sizes]
        for payload, count in zip(payloads, num_rows, strict=True):
            if rng.random() < 0.7:
                payload[:count] &= 0xF7  # no outliers

        def floats(*shape: int) -> Array:
            return guarded.copy(rng.standard_normal(shape).astype(np.float32))

        order = rng.permutation(width).astype(np.int32)
        if rng.random() < 0.1:
            order[0] = rng.choice([-1, width, INT_MAX, INT_MIN])
        listed = rng.integers(-1, num_codes + (rng.random() < 0.1), total).astype(np.int64)
        out, strange = (
            guarded.filled((total, width), np.float32),
            guarded.filled(len(num_rows), np.uint8),
        )
        result = the_kernel().rows_of_frames(
            *(address(guarded.copy(models.cdf)), address(guarded.copy(models.lut))),
            address(guarded.copy(rng.integers(0, 256, width).astype(np.uint8))),
            *(address(floats(NUM_FAMILIES, 4)), address(floats(16))),
            address(guarded.copy(rng.integers(-128, 128, (num_codes, width)).astype(np.int8))),
            *(num_codes, address(floats(width)), address(floats(blocks, size, size)), blocks),
            *(address(guarded.copy(order)), address(floats(width)), width, len(num_rows)),
            address(guarded.copy(np.array([address(one) for one in payloads], dtype=np.uint64))),
            address(guarded.copy(np.array(sizes, dtype=np.int64))),
            *(address(guarded.copy(num_rows)), address(guarded.copy(lanes))),
            *(address(guarded.copy(listed)), address(guarded.filled((total, width), np.float32))),
            *(address(guarded.filled((4, width), np.float32)), address(out), address(strange)),
        )
        is_order_wrong = blocks > 1 and bool(((order < 0) | (order >= width)).any())
        assert result == (-1 if is_order_wrong or (listed >= num_codes).any() else 0)
        if result == 0:
            ends = np.cumsum(num_rows)
            for end, count, odd in zip(ends, num_rows, strange, strict=True):
                assert odd in (0, 1)
                assert odd or np.isfinite(out[end - count : end]).all()


def fuzz_trellis_encoder(rng: np.random.Generator) -> None:
    """Any codes and any models: words, or a refusal."""
    num_rows, width, lanes = (int(rng.integers(1, high)) for high in (6, 20, 17))
    models = some_models(rng, 2 * NUM_FAMILIES, ALPHABET)
    codes = rng.choice(_EXTREME_CODES, (num_rows, width)).astype(np.int32)
    ids = rng.integers(0, 2 * NUM_FAMILIES, codes.shape).astype(np.uint8)
    if rng.random() < 0.3:
        ids[-1, -1] = rng.integers(2 * NUM_FAMILIES, 256)
    capacity = int(rng.integers(0, 3 * codes.size + 1))
    with Guarded() as guarded:
        num_words = the_kernel().trellis_encode(
            *(address(guarded.copy(models.cdf)), address(guarded.copy(ids))),
            *(address(guarded.copy(codes)), num_rows, width, lanes),
            address(guarded.copy(np.full(lanes, 1 << 16, dtype=np.uint32))),
            *(address(guarded.filled(capacity, np.uint16)), capacity),
        )
    assert -1 <= num_words <= capacity
    if ids.max() >= 2 * NUM_FAMILIES:
        assert num_words == -1


def fuzz_loudness(rng: np.random.Generator) -> None:
    """Targets from -2^31 to 2^31 - 1, in exact sums."""
    num_rows, width = int(rng.integers(0, 5)), int(rng.integers(0, 40))
    targets = rng.choice([INT_MIN, INT_MIN + 1, -5, 0, 1 << 22, INT_MAX], (num_rows, width))
    weights = rng.integers(0, 1 << 26, width)
    with Guarded() as guarded:
        loud = guarded.filled(num_rows, np.int64)
        the_kernel().row_loudness(
            *(address(guarded.copy(targets.astype(np.int32))), num_rows, width),
            *(address(guarded.copy(weights.astype(np.int32))), address(loud)),
        )
        assert (loud == (np.minimum(np.abs(targets), 1 << 22) * weights).sum(axis=1)).all()


def refuse_what_is_out_of_bounds() -> None:
    """Lanes, widths, symbols, models and targets beyond the tables: refused, nothing touched."""
    kernel = the_kernel()
    models = Models.from_counts(np.ones((3, 5)))
    for lanes in (-1, 0, 65, INT_MAX):
        assert kernel.rans_encode(None, 3, 5, None, None, 1, lanes, None, None, 1) == -1
        assert kernel.rans_decode(None, None, 3, 5, None, None, 1, lanes, None, None, 1) == -1
        assert kernel.trellis_encode(None, None, None, 1, 1, lanes, None, None, 1) == -1
        assert kernel.trellis_decode(*[None] * 6, 1, 1, lanes, None, None, 1) == -1
    for model, symbol in ((3, 0), (255, 0), (0, 5), (0, 255)):
        with Guarded() as guarded:
            refused = kernel.rans_encode(
                *(address(guarded.copy(models.cdf)), 3, 5),
                address(guarded.copy(np.array([model], dtype=np.uint8))),
                address(guarded.copy(np.array([symbol], dtype=np.uint8))),
                *(1, 1, address(guarded.filled(1, np.uint32))),
                *(address(guarded.filled(1, np.uint16)), 1),
            )
            assert refused == -1
    assert kernel.trellis_quantize(None, 1, MAX_WIDTH + 1, *[None] * 8) == -1
    for target in (LARGEST_TARGET + 1, -LARGEST_TARGET - 1, INT_MAX, INT_MIN):
        with Guarded() as guarded:
            refused = kernel.trellis_quantize(
                *(address(guarded.copy(np.array([target], dtype=np.int32))), 1, 1),
                address(guarded.copy(np.zeros(1, dtype=np.uint8))),
                address(guarded.copy(np.zeros(1, dtype=np.int8))),
                address(guarded.copy(np.zeros((2 * NUM_FAMILIES, ALPHABET), dtype=np.uint16))),
                address(guarded.filled(1, np.int32)),
                address(guarded.filled(1, np.uint8)),
                address(guarded.filled(1, np.int32)),
                address(guarded.filled(4, np.int32)),
                address(guarded.filled(1, np.uint8)),
            )
            assert refused == -2


if __name__ == "__main__":
    main()

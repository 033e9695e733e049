"""The server's kernel against numpy, without torch: products and attention. Prints what it found.

    python tests/arm64/server_kernel.py cloud/kernel/_kernel.abi3.so

It exits with 1 where a value differs by more than float32 noise, or where a row has other bits in a
batch than alone. The structures are those of kernel.c, whose sizes `sp_layout` tells.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np

NOISE = 1e-6
NUM_THREADS = 2
MAX_THREADS, MAX_GROUP = 64, 4  # as in cloud/kernel/library.py
_P, _I = ctypes.c_void_p, ctypes.c_int64


class Linear(ctypes.Structure):
    """`Linear` of kernel.c."""

    _fields_ = [("packed", _P), ("scale", _P), ("bias", _P), ("n", _I), ("k", _I)]


class Step(ctypes.Structure):
    """`Step` of kernel.c."""

    _fields_ = [
        *((name, _I) for name in ("num_rows", "width", "inner", "heads", "kv_heads")),
        *((name, _I) for name in ("head_dim", "rotary_dim")),
        *((name, _P) for name in ("arena", "place", "step", "first_piece", "pieces", "cos")),
        *((name, _P) for name in ("sin", "hidden", "wide", "mixed", "digits", "row_scale")),
        *((name, _P) for name in ("row_sum", "scores")),
        ("history", _I),
    ]


class Kernel:
    """The library, with arrays of numpy."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        self._library.sp_layout.restype = _I
        sizes = (self._library.sp_layout(1), self._library.sp_layout(4))
        if sizes != (ctypes.sizeof(Linear), ctypes.sizeof(Step)):
            sys.exit(f"structures of {sizes} bytes: this file is older than kernel.c")
        self.kind = int(self._library.sp_available())
        self._library.sp_set_threads(NUM_THREADS)

    def linear(self, x: Any, codes: Any, scale: Any, bias: Any) -> Any:
        """[T, K] -> [T, N] with int8 codes [N, K]."""
        (num_rows, width), num_outputs = x.shape, len(codes)
        rest, odd = -num_outputs % 64, -width % 4
        padded = np.pad(codes, ((0, rest), (0, odd))).reshape(-1, 64, (width + odd) // 4, 4)
        packed = np.ascontiguousarray(padded.transpose(0, 2, 1, 3)).view(np.uint8) ^ 0x80
        scale, bias = np.pad(scale, (0, rest)), np.pad(bias, (0, rest))
        out = np.empty((num_rows, num_outputs), np.float32)
        digits = np.zeros((2 * num_rows, width + odd), np.int8)
        row_scale, sums = np.empty(num_rows, np.float32), np.empty(2 * num_rows, np.int32)
        weights = Linear(at(packed), at(scale), at(bias), num_outputs, width)
        step = Step(num_rows=num_rows, digits=at(digits), row_scale=at(row_scale), row_sum=at(sums))
        self._library.sp_linear(
            ctypes.byref(weights), None, ctypes.c_float(0), _P(at(x)), _P(at(out)),
            ctypes.byref(step), ctypes.c_int32(self.kind),
        )  # fmt: skip
        return out

    def attend(self, queries: Any, arena: Any, seen: Any, scale: float) -> Any:
        """Queries [T, H, d] over the first `seen`[t] rows of the arena [rows, 2 KV, d]."""
        num_rows, heads, dim = queries.shape
        kv_heads, history = arena.shape[1] // 2, len(arena) + -len(arena) % 16
        wide = np.zeros((num_rows, heads + 2 * kv_heads, dim), np.float32)
        wide[:, :heads] = queries
        mixed = np.empty_like(queries)
        scores = np.zeros((MAX_THREADS, MAX_GROUP, history), np.float32)
        pieces = np.array([(0, 1, count) for count in seen], np.int64)
        first = np.arange(num_rows + 1, dtype=np.int64)
        step = Step(
            num_rows=num_rows, heads=heads, kv_heads=kv_heads, head_dim=dim, arena=at(arena),
            first_piece=at(first), pieces=at(pieces), wide=at(wide), mixed=at(mixed),
            scores=at(scores), history=history,
        )  # fmt: skip
        self._library.sp_attend(
            ctypes.byref(step), _I(0), ctypes.c_float(scale), ctypes.c_int32(self.kind)
        )
        return mixed


def at(array: Any) -> int:
    """Where the array's first byte is."""
    return int(array.ctypes.data)


def exact_linear(x: Any, codes: Any, scale: Any, bias: Any) -> Any:
    """What `cloud/engine/int8_linear.py` computes: two digits of each row, sums in integers."""
    row_scale = np.abs(x).max(axis=1, keepdims=True) * np.float32(1 / 127)
    ratio = x / row_scale
    high = np.rint(ratio)
    low = np.trunc((ratio - high) * np.float32(254)).astype(np.int64)
    turned = codes.T.astype(np.int64)
    sums = high.astype(np.int64) @ turned + (low @ turned) / 254
    return sums * row_scale * scale + bias


def exact_attention(queries: Any, arena: Any, seen: Any, scale: float) -> Any:
    """Softmax attention in float64, heads in groups over the key heads."""
    group = queries.shape[1] // (arena.shape[1] // 2)
    out = np.empty(queries.shape)
    for row, count in enumerate(seen):
        for head in range(queries.shape[1]):
            keys = arena[:count, head // group].astype(np.float64)
            values = arena[:count, arena.shape[1] // 2 + head // group].astype(np.float64)
            scores = keys @ queries[row, head].astype(np.float64) * scale
            weights = np.exp(scores - scores.max())
            out[row, head] = weights @ values / weights.sum()
    return out


def worst_of(found: Any, alone: Any, expected: Any) -> float:
    """The largest relative difference; exits where a row has other bits alone than in the batch."""
    if not np.array_equal(found[-1:], alone):
        sys.exit("a row has other bits in a batch than alone")
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def main() -> None:
    """Every shape of the table; one line at the end."""
    kernel, rng = Kernel(sys.argv[1]), np.random.default_rng(0)
    if kernel.kind == 0:
        print("no instructions for it here: torch runs these layers")
        return
    worst = 0.0
    for num_rows, n, k in ((1, 64, 64), (3, 200, 577), (7, 576, 1536), (100, 1536, 576)):
        codes = rng.integers(-127, 128, (n, k)).astype(np.int8)
        scale, bias = rng.random(n).astype(np.float32), rng.random(n).astype(np.float32)
        x = rng.standard_normal((num_rows, k)).astype(np.float32)
        found = kernel.linear(x, codes, scale, bias)
        alone = kernel.linear(np.ascontiguousarray(x[-1:]), codes, scale, bias)
        worst = max(worst, worst_of(found, alone, exact_linear(x, codes, scale, bias)))
    for num_rows, heads, kv_heads, dim in ((1, 9, 3, 64), (5, 8, 2, 128), (3, 4, 4, 48)):
        arena = rng.standard_normal((70, 2 * kv_heads, dim)).astype(np.float32)
        queries = rng.standard_normal((num_rows, heads, dim)).astype(np.float32)
        seen = [70 - 13 * row for row in range(num_rows)]
        found = kernel.attend(queries, arena, seen, dim**-0.5)
        alone = kernel.attend(np.ascontiguousarray(queries[-1:]), arena, seen[-1:], dim**-0.5)
        worst = max(worst, worst_of(found, alone, exact_attention(queries, arena, seen, dim**-0.5)))
    if not worst < NOISE:
        sys.exit(f"relative difference {worst:.1e}")
    print(f"kind {kernel.kind}: products and attention differ by {worst:.1e} at most")


if __name__ == "__main__":
    main()

"""The server's kernel on a corpus of shapes and of values from zero to NaN; run by `sanitize.py`.

The corpus is made from fixed seeds: rows with NaN, infinity, denormals and the largest floats; no
rows, one, several panels of them; odd widths; heads in every group; histories in pieces. Every
array has memory of exactly its size. Beside what the sanitizers see, each case checks the rule: a
row that is not finite gives NaN, and no other row's bits change.
"""

from __future__ import annotations

import ctypes
from itertools import pairwise
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from cloud.kernel import library as native
from cloud.kernel.library import CLayer, CLinear, CStep, NativeKernel
from tests.sanitize.guarded import Guarded, address

NUM_LINEAR_SEEDS: Final = 60
NUM_ATTENTION_SEEDS: Final = 50
NUM_LAYERS_SEEDS: Final = 25
_LANES: Final = 16
_LARGEST: Final = float(np.finfo(np.float32).max)
_STRANGE: Final = (
    *(np.nan, -np.nan, np.inf, -np.inf, _LARGEST, -_LARGEST, 1e25),
    *(float(np.finfo(np.float32).tiny), 1e-45, 0.0, -0.0),
)
Array: TypeAlias = npt.NDArray[Any]


def main() -> None:
    """Run the whole corpus with every instruction set; AssertionError where a result is wrong."""
    loaded = native.load()
    assert loaded is not None, "the kernel did not load"
    library = loaded._library
    for kind in range(1, int(library.sp_available()) + 1):
        kernel = NativeKernel(library, kind)
        for seed in range(NUM_LINEAR_SEEDS):
            kernel.set_threads(1 + seed % 3)
            fuzz_linear(library, kind, np.random.default_rng(seed))
        for seed in range(NUM_ATTENTION_SEEDS):
            kernel.set_threads(1 + seed % 3)
            fuzz_attention(kernel, np.random.default_rng(seed))
        for seed in range(NUM_LAYERS_SEEDS):
            kernel.set_threads(1 + seed % 3)
            fuzz_layers(kernel, np.random.default_rng(seed))


def normal(rng: np.random.Generator, *shape: int) -> Array:
    """Standard normal float32."""
    return rng.standard_normal(shape).astype(np.float32)


def spoil(rng: np.random.Generator, rows: Array) -> Array:
    """Put strange values into about half of the rows; True for the rows that were changed."""
    changed = rng.random(len(rows)) < 0.5
    if rows.shape[1]:
        for row in np.flatnonzero(changed):  # `rows[changed]` would be a copy
            count = int(rng.integers(1, rows.shape[1] + 1)) if rng.random() < 0.3 else 1
            rows[row, rng.integers(0, rows.shape[1], count)] = rng.choice(_STRANGE, count)
    return changed


def check_rows(got: Array, clean: Array, rows: Array, changed: Array) -> None:
    """got: outputs of `rows`; clean: those of the rows before some were changed."""
    is_finite = np.isfinite(rows).all(axis=1)
    assert np.isnan(got[~is_finite]).all(), "a row that is not finite gave numbers"
    same = got[~changed].view(np.int32) == clean[~changed].view(np.int32)
    assert same.all(), "a row changed another row"


class Weights:
    """A linear layer in guarded memory."""

    def __init__(self, rng: np.random.Generator, guarded: Guarded, n: int, k: int) -> None:
        low, high = ((-127, 128), (-128, 128), (127, 128), (-128, -127))[int(rng.integers(4))]
        codes = torch.from_numpy(rng.integers(low, high, (n, k)).astype(np.int8))
        scale = torch.from_numpy(rng.random(n).astype(np.float32) * 0.02 / max(1.0, k**0.5))
        bias = torch.from_numpy(normal(rng, n)) if rng.random() < 0.5 else None
        packed = native.PackedLinear(codes, scale, bias)
        self.struct = CLinear(
            packed=address(guarded.copy(packed._packed.numpy())),
            scale=address(guarded.copy(packed._scale.numpy())),
            bias=None if packed._bias is None else address(guarded.copy(packed._bias.numpy())),
            n=n,
            k=k,
        )


def fuzz_linear(library: ctypes.CDLL, kind: int, rng: np.random.Generator) -> None:
    """One product, behind a norm or not, of 0 to 8 or some hundred rows."""
    n, k = int(rng.integers(1, 200)), int(rng.integers(1, 150))
    num_rows = int(rng.integers(0, 9)) if rng.random() < 0.9 else 203
    padded = k + -k % 4
    with Guarded() as guarded:
        weights = Weights(rng, guarded, n, k)
        norm = guarded.copy(normal(rng, k)) if rng.random() < 0.5 else None
        rows = normal(rng, num_rows, k)
        step = CStep(
            num_rows=num_rows,
            mixed=address(guarded.filled(num_rows * k, np.float32)),
            digits=address(guarded.filled(2 * num_rows * padded, np.int8)),
            row_scale=address(guarded.filled(num_rows, np.float32)),
            row_sum=address(guarded.filled(2 * num_rows, np.int32)),
        )

        def run() -> Array:
            out = guarded.filled((num_rows, n), np.float32)
            library.sp_linear(
                *(ctypes.byref(weights.struct), address(norm), 1e-5),
                *(address(guarded.copy(rows)), address(out), ctypes.byref(step), kind),
            )
            return out

        clean = run()
        assert np.isfinite(clean).all()
        changed = spoil(rng, rows)
        got = run()
        check_rows(got, clean, rows, changed)
        if norm is not None:
            overflows = (rows.astype(np.float64) ** 2).sum(axis=1) > 1.01 * _LARGEST
            assert np.isnan(got[overflows]).all(), "a norm made zeros of a huge row"


def some_pieces(rng: np.random.Generator, num_rows: int, arena_rows: int) -> tuple[Array, Array]:
    """[P, 3] pieces with a stride of `arena_rows`, and [T + 1] where each row's begin."""
    pieces, first = [], [0]
    for _ in range(num_rows):
        for _ in range(int(rng.integers(1, 4))):
            count = int(rng.integers(1, arena_rows + 1))
            pieces.append((int(rng.integers(0, arena_rows - count + 1)), arena_rows, count))
        first.append(len(pieces))
    return np.array(pieces, dtype=np.int64).reshape(-1, 3), np.array(first, dtype=np.int64)


def fuzz_attention(kernel: NativeKernel, rng: np.random.Generator) -> None:
    """One layer of two over histories in up to three pieces; one row may see nothing."""
    kv_heads, group = int(rng.integers(1, 4)), int(rng.integers(1, 10))
    heads, dim = kv_heads * group, _LANES * int(rng.integers(1, 9))
    num_rows, arena_rows = int(rng.integers(0, 5)), int(rng.integers(1, 40))
    pieces, first = some_pieces(rng, num_rows, arena_rows)
    sees_nothing = num_rows > 1 and rng.random() < 0.2
    if sees_nothing:
        pieces[first[-2] :, 2] = 0
    seen = [int(pieces[begin:end, 2].sum()) for begin, end in pairwise(first)]
    history = -(-max(seen, default=0) // _LANES) * _LANES
    with Guarded() as guarded:
        arena = guarded.copy(normal(rng, 2 * arena_rows, 2 * kv_heads * dim))
        wide = guarded.copy(normal(rng, num_rows, (heads + 2 * kv_heads) * dim))
        if (
            rng.random() < 0.5
        ):  # so that a key of -infinity gives a score of -infinity in every head
            np.abs(wide, out=wide)
        mixed = guarded.filled((num_rows, heads * dim), np.float32)
        step = CStep(
            num_rows=num_rows,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=dim,
            arena=address(arena),
            first_piece=address(guarded.copy(first)),
            pieces=address(guarded.copy(pieces)),
            wide=address(wide),
            mixed=address(mixed),
            scores=address(
                guarded.filled(native.MAX_THREADS * native.MAX_GROUP * history, np.float32)
            ),
            history=history,
        )
        kernel.attend(step, 1, dim**-0.5)
        clean = mixed.copy()
        if sees_nothing:
            assert np.isnan(clean[-1]).all()
        assert np.isfinite(clean[: num_rows - sees_nothing]).all()
        # A query, then a key or value: rows that see it are not finite, the others are the same.
        query = wide[:, : heads * dim]
        changed = spoil(rng, query)
        kernel.attend(step, 1, dim**-0.5)
        strange = ~np.isfinite(query).all(axis=1)
        assert not np.isfinite(mixed[strange]).all(axis=1).any()
        assert (mixed[~changed].view(np.int32) == clean[~changed].view(np.int32)).all()
        place = int(rng.integers(arena_rows))
        arena[arena_rows + place, int(rng.integers(arena.shape[1]))] = rng.choice(_STRANGE[:4])
        kernel.attend(step, 1, dim**-0.5)
        for row, (begin, end) in enumerate(pairwise(first)):
            starts, counts = pieces[begin:end, 0], pieces[begin:end, 2]
            if ((starts <= place) & (place < starts + counts)).any():
                assert not np.isfinite(mixed[row]).all()
            elif not changed[row]:
                assert (mixed[row].view(np.int32) == clean[row].view(np.int32)).all()


def fuzz_layers(kernel: NativeKernel, rng: np.random.Generator) -> None:
    """Two whole layers of sessions with one new row each."""
    kv_heads, group = int(rng.integers(1, 3)), int(rng.integers(1, 5))
    heads, dim, num_layers = kv_heads * group, _LANES * int(rng.integers(1, 9)), 2
    width, inner = int(rng.integers(1, 100)), int(rng.integers(1, 150))
    num_rows, past = int(rng.integers(0, 6)), int(rng.integers(0, 20))
    qkv = (heads + 2 * kv_heads) * dim
    mixed_width = max(width, heads * dim, inner)
    rotary = 2 * int(rng.integers(0, dim // 2 + 1))
    own = past + 1  # arena rows of a session and layer
    history = -(-own // _LANES) * _LANES
    starts = np.arange(num_rows, dtype=np.int64) * num_layers * own
    pieces = np.stack([starts, np.full_like(starts, own), np.full_like(starts, own)], axis=1)
    with Guarded() as guarded:
        layers = native.layer_array(
            [
                CLayer(
                    qkv=Weights(rng, guarded, qkv, width).struct,
                    out=Weights(rng, guarded, width, heads * dim).struct,
                    gate_up=Weights(rng, guarded, 2 * inner, width).struct,
                    down=Weights(rng, guarded, width, inner).struct,
                    input_norm=address(guarded.copy(normal(rng, width))),
                    post_norm=address(guarded.copy(normal(rng, width))),
                    eps=1e-5,
                    scale=dim**-0.5,
                )
                for _ in range(num_layers)
            ]
        )
        rows = normal(rng, num_rows, width)
        past_values = normal(rng, num_rows * num_layers * own, 2 * kv_heads * dim)
        shared = {
            "place": starts + past,
            "step": np.full(num_rows, own, dtype=np.int64),
            "first_piece": np.arange(num_rows + 1, dtype=np.int64),
            "pieces": pieces,
            "cos": normal(rng, num_rows, rotary),
            "sin": normal(rng, num_rows, rotary),
        }
        held = {name: guarded.copy(array) for name, array in shared.items()}
        scratch = {
            "wide": guarded.filled(num_rows * max(qkv, 2 * inner), np.float32),
            "mixed": guarded.filled(num_rows * mixed_width, np.float32),
            "digits": guarded.filled(2 * num_rows * (mixed_width + -mixed_width % 4), np.int8),
            "row_scale": guarded.filled(num_rows, np.float32),
            "row_sum": guarded.filled(2 * num_rows, np.int32),
            "scores": guarded.filled(native.MAX_THREADS * native.MAX_GROUP * history, np.float32),
        }

        def run() -> Array:
            arena, hidden = guarded.copy(past_values), guarded.copy(rows)
            step = CStep(
                num_rows=num_rows,
                width=width,
                inner=inner,
                heads=heads,
                kv_heads=kv_heads,
                head_dim=dim,
                rotary_dim=rotary,
                arena=address(arena),
                hidden=address(hidden),
                history=history,
                **{name: address(array) for name, array in (held | scratch).items()},
            )
            kernel.layers(layers, 0, range(num_layers), step)
            return hidden

        clean = run()
        assert np.isfinite(clean).all()
        changed = spoil(rng, rows)
        check_rows(run(), clean, rows, changed)


if __name__ == "__main__":
    main()

"""The trellis: kernel and numpy agree, the path is the best there is, bytes are pinned."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.entropy import trellis
from codec.entropy.integers import ESCAPE, NUM_FAMILIES, REACH, SHIFTS, Families
from codec.entropy.trellis import UNITS, TrellisModels
from codec.entropy.trellis_numpy import NEXT
from codec.errors import FrameError, TablesError
from codec.kernel.library import is_compiled

CODERS = [
    False,
    pytest.param(True, marks=pytest.mark.skipif(not is_compiled(), reason="kernel not compiled")),
]
CENTRES = np.tile(np.array([0, -0.125, -0.25, -0.5], dtype=np.float32), (NUM_FAMILIES, 1))


@pytest.fixture(scope="module")
def models(families: Families) -> TrellisModels:
    return TrellisModels.from_cdf(np.repeat(families.models.cdf, 2, axis=0), slope=0.3)


def some_targets(
    rng: np.random.Generator, num_rows: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets of every family's size, a few far outside; families and offsets."""
    base = rng.integers(0, NUM_FAMILIES, width).astype(np.uint8)
    offsets = rng.integers(-7, 8, num_rows).astype(np.int8)
    family = np.clip(base.astype(int) + offsets[:, None], 0, NUM_FAMILIES - 1)
    size = 2.0 ** ((family - 16) / 4) * 2 * UNITS * 10 ** (3 * rng.random(family.shape) ** 9)
    return (rng.standard_normal(family.shape) * size).astype(np.int32), base, offsets


@given(seed=st.integers(0, 2**32 - 1), num_rows=st.integers(1, 5), width=st.integers(1, 80))
@settings(deadline=None, max_examples=40)
def test_what_is_decoded_is_the_level_each_code_names(
    models: TrellisModels, seed: int, num_rows: int, width: int
) -> None:
    targets, base, offsets = some_targets(np.random.default_rng(seed), num_rows, width)
    codes, model_ids, _ = trellis.quantize(models, targets, base, offsets)
    data = trellis.encode(models, model_ids, codes)
    back = trellis.decode(models, CENTRES * 0, base, offsets, memoryview(data))
    for t in range(num_rows):
        state = 0
        for d in range(width):
            code = int(codes[t, d])
            assert model_ids[t, d] & 1 == state & 1
            level = 2 * abs(code) - (state & 1 if code else 0)
            assert back[t, d] == (level if code >= 0 else -level)
            state = NEXT[state][code & 1]
    # Of the four candidates the nearest lies within two half steps; the price may move it by one.
    assert np.abs(back - targets / UNITS).max() < 4


@pytest.mark.skipif(not is_compiled(), reason="kernel not compiled")
@pytest.mark.parametrize(("num_rows", "width"), [(1, 40), (1, 600), (40, 300), (2, 4096), (33, 9)])
def test_kernel_and_numpy_agree_bit_for_bit(
    models: TrellisModels, num_rows: int, width: int
) -> None:
    targets, base, offsets = some_targets(np.random.default_rng(width), num_rows, width)
    weights = np.arange(width, dtype=np.int32) * 1_000_003 % (1 << 24)
    compiled, plain = (
        trellis.loudness(targets, weights, native=native) for native in (True, False)
    )
    np.testing.assert_array_equal(compiled, plain)
    one, other = (
        trellis.quantize(models, targets, base, offsets, native=native) for native in (True, False)
    )
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    data = trellis.encode(models, one[1], one[0], native=True)
    assert trellis.encode(models, one[1], one[0], native=False) == data
    values = [
        trellis.decode(models, CENTRES, base, offsets, memoryview(data), native=native)
        for native in (True, False)
    ]
    assert values[0].tobytes() == values[1].tobytes()


@pytest.mark.parametrize("native", CODERS)
@pytest.mark.parametrize("target", [(1 << 28) + 1, -(1 << 28) - 1, 2**31 - 1, -(2**31)])
def test_a_target_that_no_code_reaches_is_refused(
    models: TrellisModels, native: bool, target: int
) -> None:
    targets = np.array([[5, target, 7]], dtype=np.int32)
    base, offsets = np.zeros(3, dtype=np.uint8), np.zeros(1, dtype=np.int8)
    with pytest.raises(ValueError, match="too large"):
        trellis.quantize(models, targets, base, offsets, native=native)
    targets[0, 1] = np.sign(target) << 28
    codes, _, _ = trellis.quantize(models, targets, base, offsets, native=native)
    assert abs(int(codes[0, 1])) * 2 * UNITS == pytest.approx(1 << 28, rel=1e-6)


@pytest.mark.parametrize("native", CODERS)
def test_loudness_is_exact_down_to_the_least_integer(native: bool) -> None:
    targets = np.array([[-(2**31), 2**31 - 1, -3]], dtype=np.int32)
    weights = np.array([1, 10, 100], dtype=np.int32)
    loud = trellis.loudness(targets, weights, native=native)
    assert loud.tolist() == [11 * (1 << 22) + 300]


@pytest.mark.parametrize("native", CODERS)
def test_codes_at_the_ends_of_int32_become_escapes(models: TrellisModels, native: bool) -> None:
    codes = np.array([[2**31 - 1, -(2**31)]], dtype=np.int32)
    data = trellis.encode(models, np.zeros((1, 2), dtype=np.uint8), codes, native=native)
    assert len(data) >= 2 * 4
    base, offsets = np.zeros(2, dtype=np.uint8), np.zeros(1, dtype=np.int8)
    with pytest.raises(FrameError):  # larger than any encoder makes
        trellis.decode(models, CENTRES, base, offsets, memoryview(data), native=native)


def test_the_path_is_the_cheapest_of_all(models: TrellisModels, families: Families) -> None:
    """Brute force over every sequence of nearby codes, error plus price as documented."""
    bits = families.models.bits()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        width, family = 4, int(rng.integers(4, 20))
        targets = (rng.standard_normal((1, width)) * 80).astype(np.int32)
        base = np.full(width, family, dtype=np.uint8)
        codes, _, _ = trellis.quantize(models, targets, base, np.zeros(1, np.int8))

        def price(path: tuple[int, ...]) -> float:
            state, total = 0, 0.0
            for code, target in zip(path, targets[0], strict=True):  # noqa: B023
                level = 2 * abs(code) - (state & 1 if code else 0)
                error = abs(code) and (level if code > 0 else -level)
                total += (target / UNITS - error) ** 2 + 0.3 * bits[family, code + REACH]  # noqa: B023
                state = NEXT[state][code & 1]
            return total

        best = min(price(path) for path in itertools.product(range(-5, 6), repeat=width))
        found = price(tuple(int(code) for code in codes[0]))
        # Prices are whole units of 1 / 1024, and a code two levels nearer to zero is not tried.
        assert found <= best + 0.05 * width


def test_at_equal_error_the_trellis_beats_rounding() -> None:
    """0.1 bits at the least, on a Gaussian of 2.5 bits, in ideal code lengths."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((16, 1000))
    counts = np.ones((2 * NUM_FAMILIES, ESCAPE + 1))
    step = 0.2
    base = np.full(1000, 16, dtype=np.uint8)
    targets = np.rint(values / step * UNITS).astype(np.int32)
    for _ in range(3):
        from codec.entropy.rans import Models

        coder = TrellisModels.from_cdf(Models.from_counts(counts).cdf, slope=0.3)
        codes, model_ids, _ = trellis.quantize(coder, targets, base, np.zeros(16, np.int8))
        counts = np.ones_like(counts) * 1e-3
        np.add.at(counts, (model_ids, codes + REACH), 1)
    size = np.abs(codes)
    levels = np.sign(codes) * (2 * size - np.where(size > 0, model_ids & 1, 0))
    error = float(((values - levels * step) ** 2).mean())
    share = counts / counts.sum(axis=1, keepdims=True)
    rate = float(-np.log2(share[model_ids, codes + REACH]).mean())
    plain = np.rint(values / np.sqrt(12 * error))
    _, seen = np.unique(plain, return_counts=True)
    rounding = float(-(seen / seen.sum() * np.log2(seen / seen.sum())).sum())
    assert ((values - plain * np.sqrt(12 * error)) ** 2).mean() == pytest.approx(error, rel=0.03)
    assert rate < rounding - 0.1


@pytest.mark.parametrize("native", CODERS)
def test_bytes_are_pinned(models: TrellisModels, native: bool) -> None:
    targets = (np.arange(36).reshape(3, 12) * 53 % 400 - 190).astype(np.int32)
    targets[1, 5] = 40_000  # escapes
    base = np.arange(0, 36, 3, dtype=np.uint8)
    offsets = np.array([-3, 0, 7], dtype=np.int8)
    codes, model_ids, escapes = trellis.quantize(models, targets, base, offsets, native=native)
    assert escapes.tolist() == [0, 1, 0]
    assert trellis.encode(models, model_ids, codes, native=native).hex() == GOLDEN


GOLDEN = "efc4be26cae09d97cccb47d8710200002e1ec922a5851222ec3a4b76"


@pytest.mark.parametrize("native", CODERS)
@pytest.mark.parametrize("num_rows", [1, 12])
def test_damage_is_a_frame_error_or_other_values(
    models: TrellisModels, native: bool, num_rows: int
) -> None:
    rng = np.random.default_rng(5)
    targets, base, offsets = some_targets(rng, num_rows, 1000)
    codes, model_ids, _ = trellis.quantize(models, targets, base, offsets)
    data = trellis.encode(models, model_ids, codes)
    for _ in range(30 if native else 6):
        bad = bytearray(data)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        try:
            values = trellis.decode(models, CENTRES, base, offsets, memoryview(bad), native=native)
            assert values.shape == targets.shape
        except FrameError:
            pass
    for cut in (0, 3, 4, 5, len(data) // 2 & ~1, len(data) - 2):
        with pytest.raises(FrameError):
            trellis.decode(models, CENTRES, base, offsets, memoryview(data[:cut]), native=native)
    with pytest.raises(FrameError):
        trellis.decode(models, CENTRES, base, offsets, memoryview(data + b"ab"), native=native)


def test_tables_of_another_shape_are_refused(families: Families) -> None:
    with pytest.raises(TablesError):
        TrellisModels.from_cdf(families.models.cdf, slope=0.3)


def test_shifts_of_the_kernel_are_those_of_the_families() -> None:
    """kernel.c spells the table out; a family more or less would go unnoticed in small tests."""
    from pathlib import Path

    source = (Path(trellis.__file__).parents[1] / "kernel" / "kernel.c").read_text()
    listed = source.split("SHIFTS[NUM_FAMILIES] = {")[1].split("}")[0]
    assert [int(n) for n in listed.split(",")] == SHIFTS.tolist()

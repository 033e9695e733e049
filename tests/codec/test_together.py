"""Many frames in one call: what each would come to alone, bit for bit, whatever is among them."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from codec.bench import synthetic_ladder, synthetic_rows
from codec.errors import FrameError, TablesError
from codec.kernel.library import is_compiled
from codec.ladder import Ladder
from codec.levels import calibrated, rows_native, split_model
from codec.levels.split_model import SplitModel
from codec.rows import ROWWISE_UP_TO, Rows
from codec.together import decode_together
from tests.codec.conftest import small_model

DENSE, BLOCKS = synthetic_ladder(96), synthetic_ladder(128, block=32)
LADDERS = {"dense rotation": DENSE, "rotation in blocks": BLOCKS}
LEVELS = ("calibrated", "lossless", "tabq")


def frames_of(ladder: Ladder, seed: int) -> tuple[list[bytes], list[np.ndarray]]:
    """Frames of every level and of many lengths; some have rows that their level declines."""
    rng = np.random.default_rng(seed)
    frames, token_ids = [], []
    for number in range(24):
        count = int(rng.choice([1, 1, 1, 2, 5, 8, ROWWISE_UP_TO, ROWWISE_UP_TO + 1]))
        rows, ids = synthetic_rows(ladder, count, 100 * seed + number)
        if rng.random() < 0.2:
            rows[0] *= 10.0 ** rng.uniform(1, 6)
        if rng.random() < 0.2:
            rows[-1, ::40] = 26_800.0  # outliers
        frames.append(ladder.encode(str(rng.choice(LEVELS)), rows, ids))
        token_ids.append(ids)
    return frames, token_ids


def alone(ladder: Ladder, frame: bytes, ids: np.ndarray) -> Rows | str:
    """The rows, or what the error says."""
    try:
        return ladder.decode(frame, num_rows=len(ids), token_ids=ids)
    except FrameError as error:
        return str(error)


def assert_same(ladder: Ladder, frames: list[bytes], token_ids: list[np.ndarray]) -> int:
    """How many were refused."""
    refused = 0
    for frame, ids, found in zip(
        frames, token_ids, decode_together(ladder, frames, token_ids), strict=True
    ):
        expected = alone(ladder, frame, ids)
        if isinstance(found, FrameError):
            assert str(found) == expected
            refused += 1
        else:
            assert not isinstance(expected, str)
            assert found.tobytes() == expected.tobytes()
            assert found.base is None or found.base.nbytes == found.nbytes  # not of others' rows
    return refused


@pytest.fixture(params=[True, False], ids=["kernel", "numpy"])
def with_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        for module in (calibrated, split_model):
            monkeypatch.setattr(module, "is_compiled", lambda: False)
    elif not is_compiled():
        pytest.skip("the kernel was not compiled")
    return bool(request.param)


@pytest.mark.parametrize("ladder", LADDERS.values(), ids=LADDERS)
def test_each_frame_comes_to_what_it_does_alone(ladder: Ladder, with_kernel: bool) -> None:
    for seed in range(4):
        assert assert_same(ladder, *frames_of(ladder, seed)) == 0
    assert decode_together(ladder, [], []) == []


@pytest.mark.parametrize("ladder", LADDERS.values(), ids=LADDERS)
def test_damaged_frames_are_refused_and_leave_the_others_alone(
    ladder: Ladder, with_kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the check holds by chance: payloads are damaged behind it."""
    frames, token_ids = frames_of(ladder, 9)
    rng, refused = np.random.default_rng(5), 0
    for _ in range(30):
        tried = list(frames)
        for place in rng.integers(0, len(frames), 8):
            broken = bytearray(tried[place])
            broken[rng.integers(len(broken))] ^= 1 << int(rng.integers(8))
            tried[place] = bytes(broken[: len(broken) - int(rng.integers(3))])
        refused += assert_same(ladder, tried, token_ids)
    assert refused > 150
    monkeypatch.setattr("codec.frame._check_bytes", lambda seed, head, payload: b"\0\0")
    unchecked = [frame[:3] + b"\0\0" + frame[5:] for frame in frames if len(frame) < 900]
    short = [ids for frame, ids in zip(frames, token_ids, strict=True) if len(frame) < 900]
    for _ in range(60):
        tried = []
        for frame in unchecked:
            broken = bytearray(frame)
            broken[rng.integers(5, len(broken))] ^= 1 << int(rng.integers(8))
            tried.append(bytes(broken))
        refused += assert_same(ladder, tried, short)
    assert refused > 300


def test_the_kernels_rows_are_those_of_numpy_but_for_the_order_of_sums(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not is_compiled():
        pytest.skip("the kernel was not compiled")
    for ladder in LADDERS.values():
        frames, token_ids = frames_of(ladder, 3)
        found = decode_together(ladder, frames, token_ids)
        with monkeypatch.context() as patched:
            for module in (calibrated, split_model):
                patched.setattr(module, "is_compiled", lambda: False)
            expected = decode_together(ladder, frames, token_ids)
        for one, other in zip(found, expected, strict=True):
            assert isinstance(one, np.ndarray)
            assert isinstance(other, np.ndarray)
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3 * np.abs(other).max())


@pytest.mark.parametrize("size", [1, 3, 8, 16, 31, 33, 64, 100])
@pytest.mark.parametrize("blocks", [1, 3])
def test_the_inverse_rotation_is_that_of_float64_and_each_row_is_on_its_own(
    size: int, blocks: int
) -> None:
    if not is_compiled():
        pytest.skip("the kernel was not compiled")
    rng = np.random.default_rng(size)
    width = size * blocks
    rows = rng.standard_normal((11, width)).astype(np.float32)
    inverse = rng.standard_normal((blocks, size, size)).astype(np.float32)
    order = rng.permutation(width).astype(np.int32)
    mean = rng.standard_normal(width).astype(np.float32)
    found = rows_native.rotated_back(rows, inverse, order, mean)
    places = np.arange(width) if blocks == 1 else order
    expected = np.empty((11, width))
    for block in range(blocks):
        part = slice(block * size, (block + 1) * size)
        expected[:, places[part]] = rows[:, part].astype(float) @ inverse[block].astype(float)
    expected += mean
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6 * size)
    for first, last in ((0, 1), (3, 5), (4, 7), (2, 11)):
        part_of = rows_native.rotated_back(rows[first:last], inverse, order, mean)
        assert part_of.tobytes() == found[first:last].tobytes()


def test_tables_of_other_types_are_refused_before_the_kernel_reads_them() -> None:
    model = small_model()
    model.check(16)
    for name, dtype in (("inverse", np.float64), ("order", np.int64), ("token_codes", np.uint8)):
        with pytest.raises(TablesError, match=f"{name} in the calibrated tables has the type"):
            _with_type(model, name, dtype).check(16)
    if is_compiled():
        wrong = _with_type(model, "inverse", np.float16)
        with pytest.raises(TypeError, match="not float16"):
            wrong.rows_back(np.zeros((1, 16), dtype=np.float32))


def test_tables_of_other_shapes_are_refused() -> None:
    model = small_model()
    ids = model.token_ids
    wrong: dict[str, tuple[Any, ...]] = {
        "token_ids": (ids[:, None], ids[None, :], np.array([2**31 - 1, -(2**31)], dtype=np.int32)),
        "forward": (np.array(1.0, dtype=np.float32), model.forward[0]),
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(TablesError):
                replace(model, **{name: value}).check(16)


def test_a_bad_frame_does_not_keep_the_rows_of_the_others() -> None:
    frames, token_ids = frames_of(DENSE, 2)
    frames[3] = frames[3][:-1]
    frames[5] = frames[5][:3] + bytes(2) + frames[5][5:]
    gc.disable()
    try:
        found = decode_together(DENSE, frames, token_ids)
        assert sum(isinstance(one, FrameError) for one in found) == 2
        alive = [weakref.ref(one) for one in found if isinstance(one, np.ndarray)]
        errors = [one for one in found if isinstance(one, FrameError)]
        del found
        assert errors
        assert all(one() is None for one in alive)
    finally:
        gc.enable()


def _with_type(model: SplitModel, name: str, dtype: type) -> SplitModel:
    return replace(model, **{name: getattr(model, name).astype(dtype)})

"""Every level: bytes pinned, errors bounded, hostile bytes refused, strange rows survived."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.entropy.integers import NUM_FAMILIES, Families, decode_codes, encode_codes
from codec.errors import FrameError
from codec.ladder import Ladder
from codec.levels.calibrated import CalibratedCodec, trellis_models
from codec.levels.split_model import SplitModel
from codec.levels.tabq import TabqCodec

D = 16
ALL = ("lossless", "fine", "coarse", "packed", "tabq", "tau", "expecting")


def whole_rows(num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of small multiples of 1/4, a few large values, token ids known and unknown."""
    index = np.arange(num_rows * D).reshape(num_rows, D)
    rows = ((index * 37) % 41 - 20).astype(np.float32) / 4
    rows[::3, 3] = 410.0
    rows[1::7, 5] = -70_000.0
    return rows, np.array([5, 7, 9] * num_rows, dtype=np.int64)[:num_rows]


GOLDEN_ONE_ROW = {
    "lossless": "a20001464e804618030084500ab548cc0000a000000800005000004d0000200000000000c00000e0"
    "0000b00000f0000098000010000060000020000040000000",
    "fine": "a2410129bf7f080101000300685e82de060084a4dfa3481e2ddc45a924d9d40d82e2",
    "coarse": "a24201f6857f080101000300685ee51c040012b40fe1b3d9efce",
    "packed": "a22301e2e9010200300000c5685e7705305f38a3630a198deb8c",
    "tabq": "a22401a30c010200300000c5685e7f86ae20d2005d2aad5d4215bfe8",
    "tau": "a22501178f0108001032a9cb0000c540448042685e80c3c0c480440043777fa6e021001b9f02da959ef130",
    "expecting": "a22601d66b0101000300685e7f87d9aae035d45e8a20a156605efee201",
}
GOLDEN_SHA256 = {
    "lossless": "bdae78ca7f52cc3f",
    "fine": "4abb74fcd10dabf4",
    "coarse": "35f6842b3bf23063",
    "packed": "e38581fc61fd5e39",
    "tabq": "b08a486ceccdbde9",
    "tau": "eaa15c5585ea97a8",
    "expecting": "97430d5eaa0ee5bc",
}


@pytest.mark.parametrize("level", ALL)
def test_frames_are_pinned_byte_for_byte(ladder: Ladder, level: str) -> None:
    rows, ids = whole_rows(1)
    assert ladder.encode(level, rows, ids).hex() == GOLDEN_ONE_ROW[level]
    rows, ids = whole_rows(300)
    frame = ladder.encode(level, rows, ids)
    assert hashlib.sha256(frame).hexdigest()[:16] == GOLDEN_SHA256[level]


@pytest.mark.parametrize("level", ALL)
@pytest.mark.parametrize("num_rows", [0, 1, 2, 300])
def test_what_arrives_is_near_what_was_sent(ladder: Ladder, level: str, num_rows: int) -> None:
    rows, ids = whole_rows(num_rows)
    frame = ladder.encode(level, rows, ids)
    used = ladder.level_of(frame)
    assert used == level
    back = ladder.decode(frame, num_rows=num_rows, token_ids=ids)
    assert back.shape == rows.shape
    assert back.dtype == np.float32
    error = np.abs(back - rows)
    large = np.abs(rows) > 64
    assert (error[large] <= np.abs(rows[large]) * 2.0**-11).all()  # outliers, in fp16 or fp32
    # Two half steps, or three where bits are dear, the coarsest row 1.83 times as wide; TAB-Q
    # allows delta of the row's dense norm.
    dense = np.linalg.norm(np.where(large, 0, rows), axis=1, keepdims=True)
    widest = 3 * 1.84
    bound = {"lossless": 0, "fine": widest / 16, "coarse": widest}.get(used, 0.1 * dense)
    assert (error[~large] <= np.broadcast_to(bound + 1e-5, rows.shape)[~large]).all()


@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.0, 1e-42, 1e-6, 1.0, 300.0, 1e6, 1e30, 3e38]),
    constant=st.booleans(),
    level=st.sampled_from(ALL),
    num_rows=st.integers(0, 5),
)
@settings(deadline=None, max_examples=300)
def test_rows_of_any_size_come_back_finite_and_close(
    ladder: Ladder, seed: int, scale: float, constant: bool, level: str, num_rows: int
) -> None:
    rng = np.random.default_rng(seed)
    drawn = rng.uniform(-1, 1, (num_rows, D)) * scale
    if constant:
        drawn[:] = scale
    rows = drawn.astype(np.float32)
    ids = rng.integers(-5, 2**40, num_rows)
    frame = ladder.encode(level, rows, ids)
    back = ladder.decode(frame, num_rows=num_rows, token_ids=ids)
    assert np.isfinite(back).all()
    # A row no model fits goes out by the safe level or lossless, never as nonsense.
    worst = np.abs(back.astype(np.float64) - rows).max(initial=0)
    assert worst <= 0.11 * np.sqrt(D) * scale + 3 * 1.84


@pytest.mark.parametrize("level", ALL)
def test_mutated_frames_raise_frame_error_and_nothing_else(ladder: Ladder, level: str) -> None:
    rows, ids = whole_rows(3)
    frame = ladder.encode(level, rows, ids)
    rng = np.random.default_rng(0)
    codec = next(entry.codec for entry in ladder.levels if entry.name == level)
    payload = frame[5:]
    for _ in range(1500):
        bad = bytearray(payload)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(len(bad) + 1))
            choice = rng.integers(3)
            if choice == 0 and at < len(bad):
                bad[at] = rng.integers(256)
            elif choice == 1:
                del bad[at:]
            else:
                bad[at:at] = rng.bytes(int(rng.integers(1, 9)))
            if not bad:
                bad = bytearray(b"\0")
        # Past the check, as an attacker who computes a right one would come.
        try:
            back = codec.decode(bytes(bad), 3, ids)
            assert back.shape == (3, D)
        except FrameError:
            pass
        with pytest.raises(FrameError):
            ladder.decode(frame[:5] + bytes(bad) + b"\0", num_rows=3, token_ids=ids)


def test_block_rotation_goes_there_and_back(model: SplitModel, families: Families) -> None:
    rows, _ = whole_rows(4)
    rotated = model.rotate(rows)
    assert not np.allclose(rotated, rows)
    np.testing.assert_array_equal(model.rotate_back(rotated), rows)
    # Against the matrix spelled out: block n of the output is the ordered channels times forward.
    spelled = np.zeros((D, D), dtype=np.float32)
    blocks, size = model.forward.shape[:2]
    for n in range(blocks):
        channels = model.order[n * size : (n + 1) * size]
        spelled[channels, n * size : (n + 1) * size] = model.forward[n]
    np.testing.assert_array_equal(rotated, rows @ spelled)


def test_the_prediction_of_a_listed_token_is_taken_off(
    model: SplitModel, families: Families
) -> None:
    models = trellis_models(np.repeat(families.models.cdf, 2, axis=0), slope=0.25)
    codec = CalibratedCodec.build(model, 0.5, models, np.zeros((NUM_FAMILIES, 4), np.float32))
    expected = model.rotate_back(model.predicted(np.array([9]))) + model.mean
    known = codec.encode(expected, np.array([9])).payload
    unknown = codec.encode(expected, np.array([8])).payload
    assert len(known) < len(unknown)
    np.testing.assert_allclose(codec.decode(known, 1, np.array([9])), expected, atol=1e-4)


def test_integer_codes_of_any_size_come_back(families: Families) -> None:
    rng = np.random.default_rng(0)
    codes = (rng.standard_normal(5000) * 2.0 ** rng.uniform(-2, 29, 5000)).clip(-(2**29), 2**29)
    codes = codes.astype(np.int32)
    family = rng.integers(0, NUM_FAMILIES, 5000).astype(np.uint8)
    data = encode_codes(families, family, codes)
    back, used = decode_codes(families, family, memoryview(data))
    assert used == len(data)
    np.testing.assert_array_equal(back, codes)


@pytest.mark.parametrize("delta", [0.02, 0.1, 0.3])
def test_tabq_takes_the_largest_scale_whose_error_stays_within_delta(delta: float) -> None:
    """Brute force over the whole grid of scales, one row at a time."""
    rng = np.random.default_rng(1)
    dense = (rng.standard_normal((20, 256)) * 2.0 ** rng.integers(-9, 9, (20, 1))).astype(
        np.float32
    )
    found, declined = TabqCodec(hidden_size=256, delta=delta).choose_scales(dense)
    assert not declined.any()
    for row, scale in zip(dense.astype(np.float64), found, strict=True):
        within = []
        for byte in range(1, 256):
            step = 2.0 ** ((byte - 128) / 8)
            error = np.linalg.norm(row - step * np.rint(row / step))
            if error <= delta * np.linalg.norm(row):
                within.append(byte)
        assert max(within) - 1 <= scale <= max(within)


def test_tabq_widths_stay_between_min_and_max_bits() -> None:
    rng = np.random.default_rng(2)
    dense = rng.standard_normal((8, 64)).astype(np.float32)
    for delta, low, high in ((1e-4, 2, 5), (0.9, 4, 8)):
        codec = TabqCodec(hidden_size=64, delta=delta, top_k=0, min_bits=low, max_bits=high)
        ids = np.zeros(8, dtype=np.int64)
        payload = codec.encode(dense, ids).payload
        widths = np.frombuffer(payload, np.uint8, count=16, offset=1)[1::2]
        assert widths.max() <= high
        assert widths.min() >= low


def test_one_massive_row_does_not_cost_the_others_their_level(ladder: Ladder) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((64, D)).astype(np.float32)
    rows[0] = rng.uniform(900, 26_800, D)
    ids = np.zeros(64, dtype=np.int64)
    frame = ladder.encode("coarse", rows, ids)
    assert ladder.level_of(frame) == "coarse"
    back = ladder.decode(frame, num_rows=64, token_ids=ids)
    assert np.linalg.norm(back[0] - rows[0]) <= 0.1 * np.linalg.norm(rows[0])
    assert np.abs(back[1:] - rows[1:]).max() < 3 * 1.84
    alone = ladder.encode("coarse", rows[:1], ids[:1])
    assert ladder.level_of(alone) == ladder.safe_level

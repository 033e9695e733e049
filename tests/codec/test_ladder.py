"""The ladder: framing, refusals, and the lossless level bit for bit."""

from typing import Any

import numpy as np
import pytest

from codec.errors import EncodeError, FrameError
from codec.ladder import Ladder

LADDER = Ladder.lossless(8)
IDS = np.arange(3, dtype=np.int64)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-42, 1e30, -3.25, 65504.0, 3.4e38])
@pytest.mark.parametrize("num_rows", [0, 1, 3, 200])
def test_lossless_returns_the_same_bits(num_rows: int, value: float) -> None:
    rows = np.full((num_rows, 8), value, dtype=np.float32)
    rows[::2] += np.random.default_rng(0).standard_normal((len(rows[::2]), 8)).astype(np.float32)
    ids = np.zeros(num_rows, dtype=np.int64)
    frame = LADDER.encode("lossless", rows, ids)
    back = LADDER.decode(frame, num_rows=num_rows, token_ids=ids)
    assert back.tobytes() == rows.tobytes()
    assert LADDER.level_of(frame) == "lossless"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_numbers_are_refused_before_anything_is_sent(bad: float) -> None:
    rows = np.zeros((3, 8), dtype=np.float32)
    rows[1, 4] = bad
    with pytest.raises(EncodeError, match=r"row 1 .* channel 4"):
        LADDER.encode("lossless", rows, IDS)


def test_wrong_level_shape_dtype_or_token_ids_are_encode_errors() -> None:
    rows = np.zeros((3, 8), dtype=np.float32)
    doubles: Any = np.zeros((3, 8))
    with pytest.raises(EncodeError, match="no level 'q9'"):
        LADDER.encode("q9", rows, IDS)
    with pytest.raises(EncodeError, match="expected float32"):
        LADDER.encode("lossless", rows[:, :7], IDS)
    with pytest.raises(EncodeError, match="expected float32"):
        LADDER.encode("lossless", doubles, IDS)
    with pytest.raises(EncodeError, match="token ids"):
        LADDER.encode("lossless", rows, IDS[:2])


def test_every_changed_byte_and_every_truncation_is_a_frame_error() -> None:
    rows = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    frame = LADDER.encode("lossless", rows, IDS)
    for at in range(len(frame)):
        changed = bytearray(frame)
        changed[at] ^= 0x10
        with pytest.raises(FrameError):
            LADDER.decode(bytes(changed), num_rows=3, token_ids=IDS)
        with pytest.raises(FrameError):
            LADDER.decode(frame[:at], num_rows=3, token_ids=IDS)


def test_a_frame_for_other_rows_or_another_width_is_refused() -> None:
    frame = LADDER.encode("lossless", np.ones((3, 8), dtype=np.float32), IDS)
    with pytest.raises(FrameError, match="3 rows, expected 2"):
        LADDER.decode(frame, num_rows=2, token_ids=IDS[:2])
    with pytest.raises(FrameError, match="check failed"):
        Ladder.lossless(4).decode(frame, num_rows=3, token_ids=IDS)


def test_a_frame_longer_than_its_rows_allow_is_refused_before_it_is_read() -> None:
    with pytest.raises(FrameError, match="too long"):
        LADDER.decode(bytes(10**6), num_rows=3, token_ids=IDS)

"""The frame: what it says comes back, and what it cannot say is refused."""

from __future__ import annotations

import numpy as np
import pytest

from codec.errors import FrameError
from codec.frame import (
    MAX_KINDS,
    MAX_LEVELS,
    MAX_ROWS,
    check_seed,
    pack_frame,
    pack_varint,
    peek_level,
    read_varint,
    unpack_frame,
)
from codec.ladder import Ladder

SEED = check_seed(8, "00" * 32)


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 5000])
def test_kind_level_rows_and_payload_come_back(size: int) -> None:
    frame = pack_frame(5, 17, 300, bytes(size), SEED)
    parsed = unpack_frame(frame, SEED)
    assert (parsed.kind, parsed.level_index, parsed.num_rows) == (5, 17, 300)
    assert parsed.payload == bytes(size)
    assert peek_level(frame) == (5, 17)
    assert len(frame) == size + 4 + (2 if size < 1024 else 4)


@pytest.mark.parametrize(
    ("kind", "level_index", "num_rows"),
    [(MAX_KINDS, 0, 1), (-1, 0, 1), (0, MAX_LEVELS, 1), (0, 0, MAX_ROWS + 1), (0, 0, -1)],
)
def test_what_has_no_place_in_the_header_is_refused(
    kind: int, level_index: int, num_rows: int
) -> None:
    with pytest.raises(ValueError, match=r"outside|rows in one frame"):
        pack_frame(kind, level_index, num_rows, b"", SEED)


@pytest.mark.parametrize("kind", range(1, MAX_KINDS))
def test_a_frame_of_a_kind_that_the_level_is_not_of_is_refused(kind: int) -> None:
    ladder = Ladder.lossless(8)
    seed = check_seed(8, ladder.tables_sha256)
    frame = pack_frame(kind, 0, 1, b"\1", seed)
    with pytest.raises(FrameError):
        ladder.decode(frame, num_rows=1, token_ids=np.zeros(1, dtype=np.int64))


@pytest.mark.parametrize("value", [0, 127, 128, 1 << 14, (1 << 28) - 1])
def test_counts_come_back_and_say_where_they_end(value: int) -> None:
    assert read_varint(b"x" + pack_varint(value) + b"y", 1) == (value, 1 + len(pack_varint(value)))


def test_a_count_that_does_not_end_is_refused() -> None:
    with pytest.raises(FrameError, match="more than 4 bytes"):
        read_varint(b"\xff\xff\xff\xff\x01", 0)
    with pytest.raises(FrameError, match="ends inside"):
        read_varint(b"\xff", 0)

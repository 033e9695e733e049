"""A row arrives the same, bit for bit, whichever rows share its frame; odd ones fall back alone."""

import numpy as np
import pytest

from codec.bench import synthetic_ladder, synthetic_rows
from codec.errors import FrameError
from codec.frame import MIXED, check_seed, pack_frame, unpack_frame
from codec.ladder import Ladder
from codec.levels.lossless import LOSSLESS
from codec.rows import ROWWISE_UP_TO

DENSE, BLOCKS = synthetic_ladder(96), synthetic_ladder(128, block=32)
LADDERS = {"dense rotation": DENSE, "rotation in blocks": BLOCKS}


def odd_rows(ladder: Ladder, num_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows as the model expects, with a massive one, a loud one and zeros among them."""
    rows, ids = synthetic_rows(ladder, num_rows, seed)
    rng = np.random.default_rng(seed)
    rows[1::7] *= 10.0 ** rng.uniform(1, 5)
    rows[2::5, ::40] = 26_800.0
    rows[3::9] = 0
    rows[num_rows - 1] *= 1e30
    return rows, ids


@pytest.mark.parametrize("ladder", LADDERS.values(), ids=LADDERS)
@pytest.mark.parametrize("level", ["lossless", "calibrated", "tabq"])
@pytest.mark.parametrize("num_rows", [2, 5, 8, ROWWISE_UP_TO])
def test_a_frame_of_rows_gives_what_one_frame_a_row_gives(
    ladder: Ladder, level: str, num_rows: int
) -> None:
    for seed in range(10):
        rows, ids = odd_rows(ladder, num_rows, seed)
        together = ladder.decode(ladder.encode(level, rows, ids), num_rows=num_rows, token_ids=ids)
        for index in range(num_rows):
            one = slice(index, index + 1)
            frame = ladder.encode(level, rows[one], ids[one])
            alone = ladder.decode(frame, num_rows=1, token_ids=ids[one])
            assert alone.tobytes() == together[one].tobytes()


def test_a_strange_row_falls_back_without_the_others() -> None:
    rows, ids = synthetic_rows(DENSE, 6)
    rows[4] *= 1000
    frame = DENSE.encode("calibrated", rows, ids)
    assert DENSE.level_of(frame) == "calibrated"
    parsed = unpack_frame(frame, check_seed(96, DENSE.tables_sha256))
    assert parsed.kind == MIXED
    assert parsed.payload[0] == 1 << 4
    usual = DENSE.encode("calibrated", np.delete(rows, 4, axis=0), np.delete(ids, 4))
    alone = DENSE.encode("calibrated", rows[4:5], ids[4:5])
    assert DENSE.level_of(alone) == DENSE.safe_level
    assert len(frame) < len(usual) + len(alone) + 8
    back = DENSE.decode(frame, num_rows=6, token_ids=ids)
    assert back[4].tobytes() == rows[4].tobytes()


@pytest.mark.parametrize(
    "flags", [b"", b"\x00", b"\x3f", b"\x50", b"\x10", b"\x10\xff\xff\xff\xff\xff"]
)
def test_row_flags_that_make_no_sense_are_frame_errors(flags: bytes) -> None:
    _, ids = synthetic_rows(DENSE, 6)
    seed = check_seed(96, DENSE.tables_sha256)
    with pytest.raises(FrameError):
        DENSE.decode(pack_frame(MIXED, 1, 6, flags, seed), num_rows=6, token_ids=ids)


def test_mixed_frames_do_not_nest_without_end() -> None:
    """Each nesting keeps one row; only as many fallbacks as an encoder makes are read."""
    num_rows = 6
    ids = np.zeros(num_rows, dtype=np.int64)
    rows = np.zeros((1, 96), dtype=np.float32)
    one = unpack_frame(DENSE.encode("lossless", rows, ids[:1]), check_seed(96, DENSE.tables_sha256))
    body = one.payload
    for left in range(2, num_rows + 1):
        head = bytes(((MIXED if left > 2 else LOSSLESS.number) << 5,))
        flags = bytes(((1 << left) - 2,))
        size = len(one.payload)
        length = bytes((size & 0x7F | 0x80, size >> 7)) if size > 0x7F else bytes((size,))
        body = flags + length + one.payload + head + body
        frame = pack_frame(MIXED, 0, left, body, check_seed(96, DENSE.tables_sha256))
        if left <= 3:
            back = DENSE.decode(frame, num_rows=left, token_ids=ids[:left])
            assert not back.any()
        else:
            with pytest.raises(FrameError, match="mixed frame"):
                DENSE.decode(frame, num_rows=left, token_ids=ids[:left])

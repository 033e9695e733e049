"""Frames of many sessions that are decoded together: rows for torch, or what ends a session."""

from __future__ import annotations

import numpy as np
import pytest

from cloud.engine.frame_decoding import JoinableDecoder
from cloud.errors import BadFrameError
from cloud.sessions.frame_checks import PlainRows, decoded_rows
from codec.bench import synthetic_ladder, synthetic_rows
from protos.messages import Frame

LADDER = synthetic_ladder(96)


def sent(sequence: int, level: str, num_rows: int = 1) -> Frame:
    rows, ids = synthetic_rows(LADDER, num_rows, sequence)
    return Frame(
        sequence=sequence,
        first_position=0,
        token_ids=tuple(ids.tolist()),
        hidden=LADDER.encode(level, rows, np.asarray(ids, dtype=np.int64)),
    )


def test_together_gives_what_each_gives_alone() -> None:
    frames = [sent(0, "calibrated"), sent(1, "lossless"), sent(2, "calibrated", 8), sent(3, "tabq")]
    decoders = [PlainRows(LADDER, frame) for frame in frames]
    assert all(isinstance(one, JoinableDecoder) for one in decoders)
    assert len({one.group for one in decoders}) == 1
    for frame, found in zip(frames, decoders[0].together(decoders), strict=True):
        assert isinstance(found, np.ndarray)
        assert found.tobytes() == decoded_rows(LADDER, frame).tobytes()
        assert found.flags.writeable
        assert found.flags.c_contiguous


def test_a_damaged_frame_is_its_own_sessions_error() -> None:
    good, bad = sent(4, "calibrated"), sent(5, "calibrated")
    broken = Frame(
        sequence=5, first_position=0, token_ids=bad.token_ids, hidden=bad.hidden[:-1] + b"\xff"
    )
    first, second = PlainRows(LADDER, broken).together(
        [PlainRows(LADDER, broken), PlainRows(LADDER, good)]
    )
    assert isinstance(first, BadFrameError)
    with pytest.raises(BadFrameError) as alone:
        decoded_rows(LADDER, broken)
    assert str(first) == str(alone.value)
    assert str(first).startswith("frame 5: ")
    assert isinstance(second, np.ndarray)

"""Frames have the recorded bytes on every processor, with the compiled kernel and without."""

from __future__ import annotations

import json

import numpy as np
import pytest

from codec.entropy import rans, trellis
from codec.kernel.library import is_compiled
from tests.codec.golden import (
    FILE,
    ROWS,
    SESSION_FILE,
    exact_ladder,
    exact_rows,
    frame_hashes,
    session_hashes,
)


@pytest.mark.parametrize(
    "compiled",
    [
        pytest.param(True, marks=pytest.mark.skipif(not is_compiled(), reason="not compiled")),
        False,
    ],
    ids=["kernel", "numpy"],
)
def test_frames_have_the_recorded_hashes(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    for module in (rans, trellis):
        monkeypatch.setattr(module, "is_compiled", lambda: compiled)
    recorded = json.loads(FILE.read_text(encoding="utf-8"))
    assert frame_hashes(exact_ladder()) == recorded
    recorded = json.loads(SESSION_FILE.read_text(encoding="utf-8"))
    assert session_hashes(exact_ladder()) == recorded


def test_the_recorded_frames_are_of_their_levels_and_decode() -> None:
    ladder = exact_ladder()
    rows, ids = exact_rows(max(ROWS))
    for level in ladder.names:
        frame = ladder.encode(level, rows, ids)
        assert ladder.level_of(frame) == level
        back = ladder.decode(frame, num_rows=len(rows), token_ids=ids)
        bound = {"lossless": 0, "fine": 1, "middle": 8, "coarse": 32}.get(level, 64)
        ordinary = np.abs(rows) < 64
        assert np.abs(back - rows)[ordinary].max() <= bound

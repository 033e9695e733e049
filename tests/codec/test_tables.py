"""The tables file: what was written is what is read; damage is a TablesError."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codec.entropy.integers import NUM_FAMILIES, Families
from codec.errors import FrameError, TablesError
from codec.ladder import Ladder
from codec.levels.split_model import SplitModel
from codec.tables import read_tables, write_tables

IDS = np.array([5, 9, 7], dtype=np.int64)


def write(path: Path, model: SplitModel, families: Families, **changed: Any) -> str:
    arrays = model.arrays()
    arrays["q.cdf"] = np.repeat(families.models.cdf, 2, axis=0)
    arrays["q.centres"] = np.zeros((NUM_FAMILIES, 4), dtype=np.float32)
    arrays["t.cdf"] = families.models.cdf
    tabq = {"delta": 0.1, "top_k": 2, "tau": None, "min_bits": 2, "max_bits": 8, "entropy": True}
    tabq |= {"centre": None, "eighths": None}
    header = {
        "hidden_size": 16,
        "levels": [
            {"name": "q", "kind": "calibrated", "step": 0.25, "slope": 0.3, "extra": False},
            {"name": "t", "kind": "tabq", "extra": True, **tabq},
        ],
        "safe_level": "t",
    }
    return write_tables(path, header | changed, arrays)


def test_a_ladder_comes_back_from_its_file(
    tmp_path: Path, model: SplitModel, families: Families
) -> None:
    digest = write(tmp_path / "a.tables", model, families)
    ladder = Ladder.load(tmp_path / "a.tables", hidden_size=16)
    assert ladder.tables_sha256 == digest
    assert ladder.names == ("lossless", "q")
    assert ladder.extra_names == ("t",)
    rows = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)
    back = ladder.decode(ladder.encode("q", rows, IDS), num_rows=3, token_ids=IDS)
    assert np.abs(back - rows).max() <= 3 * 1.84 * 0.25  # three half steps of the coarsest row


def test_frames_of_other_tables_are_refused(
    tmp_path: Path, model: SplitModel, families: Families
) -> None:
    write(tmp_path / "a", model, families)
    write(tmp_path / "b", model, families, note="other bytes")
    one, other = (Ladder.load(tmp_path / name, hidden_size=16) for name in "ab")
    frame = one.encode("q", np.zeros((3, 16), dtype=np.float32), IDS)
    with pytest.raises(FrameError, match="other tables"):
        other.decode(frame, num_rows=3, token_ids=IDS)


def test_missing_empty_cut_or_scrambled_files_are_tables_errors(
    tmp_path: Path, model: SplitModel, families: Families
) -> None:
    with pytest.raises(TablesError, match="No such file"):
        Ladder.load(tmp_path / "none", hidden_size=16)
    path = tmp_path / "a"
    write(path, model, families)
    with pytest.raises(TablesError, match="hidden size 16, this is 8"):
        Ladder.load(path, hidden_size=8)
    whole = path.read_bytes()
    for cut in (0, 5, 11, 40, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(TablesError):
            Ladder.load(path, hidden_size=16)
    path.write_bytes(b"SPCODEC1" + whole[8:])
    with pytest.raises(TablesError, match="build' again"):
        Ladder.load(path, hidden_size=16)
    rng = np.random.default_rng(0)
    for _ in range(300):
        bad = bytearray(whole)
        bad[rng.integers(1500)] = rng.integers(256)
        path.write_bytes(bad)
        with suppress(TablesError):
            Ladder.load(path, hidden_size=16)


@pytest.mark.parametrize(
    "changed",
    [
        {"safe_level": "q9"},
        {"levels": [{"name": "q", "kind": "magic", "extra": False}]},
        {
            "levels": [
                {"name": "q", "kind": "calibrated", "step": -1.0, "slope": 0.3, "extra": False}
            ]
        },
        {"levels": [{"name": "q"}]},
        {"levels": 3},
    ],
)
def test_a_header_that_makes_no_sense_is_a_tables_error(
    tmp_path: Path, model: SplitModel, families: Families, changed: dict[str, Any]
) -> None:
    write(tmp_path / "a", model, families, **changed)
    with pytest.raises(TablesError):
        Ladder.load(tmp_path / "a", hidden_size=16)


@pytest.mark.parametrize(
    "header",
    [
        b'{"arrays": {}, "arrays": {}}',
        b'{"arrays": {}, "step": NaN}',
        b'{"arrays": {}, "step": 1e999}',
        b'{"arrays": {"a": {"dtype": "<f4", "shape": [1e308], "offset": 0}}}',
        b'{"arrays": {"a": {"dtype": "<f4", "shape": [1' + b"0" * 400 + b'], "offset": 0}}}',
        b'{"arrays": {"a": {"dtype": "<f4", "shape": [1], "offset": Infinity}}}',
        b"[" * 100_000,
        b"[]",
    ],
)
def test_a_hostile_header_is_a_tables_error(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "a.tables"
    path.write_bytes(b"SPCODEC2" + len(header).to_bytes(4, "little") + header + bytes(64))
    with pytest.raises(TablesError, match=r"a\.tables: damaged header"):
        read_tables(path)

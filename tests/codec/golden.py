"""Frames that every processor must make alike: rows and tables on which no float is rounded.

    python -m tests.codec.golden    # writes golden_frames.json anew, after a change of the format

The rotation is a Hadamard matrix over 8 and all values are small multiples of 1/8. So every sum is
exact, in any order, and the bytes depend on the code alone. Rows of a model have sums that
processors round differently; there a component on the border between two codes may differ.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from codec.entropy.integers import NUM_FAMILIES
from codec.ladder import Ladder, Level
from codec.levels.calibrated import CalibratedCodec, trellis_models
from codec.levels.lossless import LosslessCodec
from codec.levels.recall_model import RecallModel
from codec.levels.recalled import RecalledCodec
from codec.levels.split_model import SplitModel
from codec.levels.tabq import TabqCodec
from codec.session_coder import SessionCoder
from codec.session_rows import LONGEST_CONTEXT
from tests.codec.conftest import whole_number_families

WIDTH = 576
BLOCK = 64
ROWS = (1, 2, 33)
FILE = Path(__file__).with_name("golden_frames.json")
SESSION_FILE = Path(__file__).with_name("golden_session_frames.json")


def exact_model() -> SplitModel:
    """Nine blocks of 64 channels, a hundred listed tokens."""
    hadamard = np.ones((1, 1), dtype=np.float32)
    while len(hadamard) < BLOCK:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    rotation = np.repeat((hadamard / 8)[None], WIDTH // BLOCK, axis=0).astype(np.float32)
    index = np.arange(WIDTH)
    return SplitModel(
        mean=(((index * 29) % 17 - 8) / 8).astype(np.float32),
        tau=np.full(WIDTH, 64, dtype=np.float32),
        sigma=(2.0 ** (4 - index % BLOCK // 8)).astype(np.float32),
        forward=rotation,
        inverse=np.ascontiguousarray(rotation.swapaxes(1, 2)),
        order=((index * 5) % WIDTH).astype(np.int32),
        token_ids=np.arange(0, 300, 3, dtype=np.int32),
        token_codes=((np.arange(100 * WIDTH) * 7) % 41 - 20).reshape(100, WIDTH).astype(np.int8),
        token_scale=np.full(WIDTH, 0.125, dtype=np.float32),
        sensitivity=np.zeros(WIDTH + 1, dtype=np.float32),
    )


def exact_ladder() -> Ladder:
    """lossless, three calibrated steps, TAB-Q packed and with entropy coding."""
    families, model = whole_number_families(), exact_model()
    models = trellis_models(np.repeat(families.models.cdf, 2, axis=0), slope=0.25)
    centres = np.zeros((NUM_FAMILIES, 4), dtype=np.float32)
    contexts = np.arange(1, LONGEST_CONTEXT + 1)
    sigma = model.sigma
    recall = RecallModel(
        shares=np.repeat((96 + 32 * contexts[:, None]).astype(np.uint8), WIDTH, axis=1),
        left=np.stack([sigma, *(sigma / 2**half for half in contexts / 2)]).astype(np.float32),
        power=np.repeat(sigma[None], LONGEST_CONTEXT, axis=0),
        unit=0.0625,
    )
    steps = {"fine": 0.125, "middle": 1.0, "coarse": 4.0}
    calibrated = {
        name: CalibratedCodec.build(model, step, models, centres) for name, step in steps.items()
    }
    tabq = {"packed": None, "tabq": families}
    levels = (
        Level(name="lossless", codec=LosslessCodec(hidden_size=WIDTH)),
        *(
            Level(name=name, codec=codec, recalled=RecalledCodec.build(codec, recall))
            for name, codec in calibrated.items()
        ),
        *(
            Level(
                name=name,
                codec=TabqCodec(hidden_size=WIDTH, delta=0.125, top_k=2, families=coded),
                extra=True,
            )
            for name, coded in tabq.items()
        ),
    )
    return Ladder(hidden_size=WIDTH, levels=levels, tables_sha256="00" * 32, safe_level="tabq")


def exact_rows(num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows [T, 576] of multiples of 1/8 with a few outliers, and token ids, some not listed."""
    index = np.arange(num_rows * WIDTH, dtype=np.int64).reshape(num_rows, WIDTH)
    rows = ((index * index * 31 + index * 17) % 97 - 48).astype(np.float32) / 8
    rows[::3, 40] = 410.0
    rows[1::4, 111] = -7_000.0
    return rows, (np.arange(num_rows, dtype=np.int64) * 5) % 310


def frame_hashes(ladder: Ladder) -> dict[str, str]:
    """SHA-256 of a frame of each level and number of rows, as "level, rows"."""
    hashes = {}
    for level in ladder.levels:
        for num_rows in ROWS:
            frame = ladder.encode(level.name, *exact_rows(num_rows))
            hashes[f"{level.name}, {num_rows}"] = hashlib.sha256(frame).hexdigest()
    return hashes


def session_hashes(ladder: Ladder) -> dict[str, str]:
    """SHA-256 of a session's frames at each level that predicts rows from earlier ones, one after
    the other, and the check over what is held at the end."""
    hashes = {}
    rows, ids = exact_rows(40)
    for level in ladder.levels:
        if level.recalled is None:
            continue
        coder = SessionCoder(ladder)
        for begin, end in ((0, 24), (24, 25), (25, 33), (28, 29), (29, 40)):
            # Tokens come again, and with them rows that differ by a few eighths.
            part, names = rows[begin:end].copy(), ids[begin:end] % 35
            frame, arrived = coder.encode(level.name, part, names, first_position=begin)
            coder.take(begin, names, arrived)
            hashes[f"{level.name}, {begin} to {end}"] = hashlib.sha256(frame).hexdigest()
        hashes[f"{level.name}, held"] = f"{coder.check_before(40):08x}"
    return hashes


if __name__ == "__main__":
    sessions = json.dumps(session_hashes(exact_ladder()), indent=2) + "\n"
    SESSION_FILE.write_text(sessions, encoding="utf-8")
    FILE.write_text(json.dumps(frame_hashes(exact_ladder()), indent=2) + "\n", encoding="utf-8")

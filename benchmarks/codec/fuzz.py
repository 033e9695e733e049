"""Mutated frames against the decoder: only FrameError may come out, and nothing may hang.

    python benchmarks/codec/fuzz.py --frames 1000000 [--session]

Each frame is a valid one of a random level, damaged at random; half of them carry a recomputed
check, as an attacker would send them, so that the damage reaches the decoders behind it. With
--session, frames refer to rows of a session, and a damaged one must not change what it holds.
"""

import argparse
import json
import resource
import time

import numpy as np

from codec.bench import synthetic_ladder, synthetic_rows
from codec.errors import FrameError
from codec.frame import check_seed, pack_frame, unpack_frame
from codec.ladder import Ladder
from codec.levels.calibrated_kind import CALIBRATED
from codec.levels.registry import KINDS
from codec.session_coder import SessionCoder


def damaged(payload: bytes, rng: np.random.Generator) -> bytes:
    """One to four changed, cut, doubled or inserted pieces."""
    out = bytearray(payload)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(len(out) + 1))
        match int(rng.integers(5)):
            case 0 if at < len(out):
                out[at] = int(rng.integers(256))
            case 1 if at < len(out):
                out[at] ^= 1 << int(rng.integers(8))
            case 2:
                del out[at:]
            case 3:
                out[at:at] = rng.bytes(int(rng.integers(1, 17)))
            case _:
                out[at : at + 8] = b"\xff" * 8
    return bytes(out)


def run_session(num_frames: int, hidden_size: int, seed: int) -> dict[str, object]:
    """As `run`, for frames behind 24 rows of a session."""
    ladder = synthetic_ladder(hidden_size, block=16)
    rng = np.random.default_rng(seed)
    coder, level = SessionCoder(ladder), CALIBRATED.name
    rows, names = synthetic_rows(ladder, 24)
    names = names % 7
    _, arrived = coder.encode(level, rows, names, first_position=0)
    coder.take(0, names, arrived)
    held = coder.check_before(24)
    valid = []
    for num_rows, loudest in ((1, 1.0), (4, 1.0), (4, 1000.0), (24, 1.0)):
        rows, ids = synthetic_rows(ladder, num_rows, seed=2)
        ids = ids % 7
        rows[0, 3] = 1e6
        rows[-1] *= loudest
        for plain in (False, True):
            frame, _ = coder.encode(level, rows, ids, first_position=24, plain=plain)
            valid.append((frame, ids))
    refused, accepted, slowest = 0, 0, 0.0
    for index in range(num_frames):
        frame, ids = valid[index % len(valid)]
        bad = damaged(frame, rng)
        if rng.integers(2):
            seeded = coder.seed_of(frame, 24)
            parsed = ladder.parsed(frame, len(ids), ids, seeded)
            payload = damaged(parsed.payload, rng)
            bad = pack_frame(parsed.kind, parsed.level_index, len(ids), payload, seeded)
        begin = time.perf_counter()
        try:
            found, _ = coder.decode(bad, token_ids=ids, first_position=24)
            accepted += 1
            if found.shape != (len(ids), hidden_size) or not np.isfinite(found).all():
                raise RuntimeError(f"decoder returned {found.shape} from a damaged frame")
        except FrameError:
            refused += 1
        slowest = max(slowest, time.perf_counter() - begin)
        if coder.num_tokens != 24 or coder.check_before(24) != held:
            raise RuntimeError("a damaged frame changed what the session holds")
    return {"frames": num_frames, "refused": refused, "decoded": accepted, "slowest_s": slowest}


def run(num_frames: int, hidden_size: int, seed: int) -> dict[str, object]:
    ladder = synthetic_ladder(hidden_size, block=16)
    rng = np.random.default_rng(seed)
    seeds = check_seed(hidden_size, ladder.tables_sha256)
    valid = []
    for num_rows, loudest in ((1, 1.0), (3, 1.0), (3, 1000.0)):
        rows, ids = synthetic_rows(ladder, num_rows)
        rows[0, 3] = 1e6
        rows[-1] *= loudest  # a row that falls back makes a mixed frame
        valid += [(ladder.encode(name, rows, ids), num_rows, ids) for name in ladder.names]
    refused, accepted, slowest = 0, 0, 0.0
    begin_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for index in range(num_frames):
        frame, num_rows, ids = valid[index % len(valid)]
        if rng.integers(2):
            parsed = unpack_frame(frame, seeds)
            bad = pack_frame(
                parsed.kind, parsed.level_index, num_rows, damaged(parsed.payload, rng), seeds
            )
        else:
            bad = damaged(frame, rng)
        begin = time.perf_counter()
        refused, accepted = _decode(ladder, bad, num_rows, ids, refused, accepted)
        slowest = max(slowest, time.perf_counter() - begin)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begin_kib
    return {
        "frames": num_frames,
        "refused": refused,
        "decoded": accepted,
        "slowest_s": slowest,
        "kinds": sorted({_kind_name(unpack_frame(frame, seeds).kind) for frame, _, _ in valid}),
        "memory_growth_kib": grown,
    }


def _kind_name(number: int) -> str:
    return next((kind.name for kind in KINDS if kind.number == number), "mixed")


def _decode(
    ladder: Ladder, bad: bytes, num_rows: int, ids: np.ndarray, refused: int, accepted: int
) -> tuple[int, int]:
    try:
        rows = ladder.decode(bad, num_rows=num_rows, token_ids=ids)
    except FrameError:
        return refused + 1, accepted
    if rows.shape != (num_rows, ladder.hidden_size) or not np.isfinite(rows).all():
        raise RuntimeError(f"decoder returned {rows.shape} from a damaged frame")
    return refused, accepted + 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--hidden-size", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--session", action="store_true")
    options = parser.parse_args()
    fuzz = run_session if options.session else run
    print(json.dumps(fuzz(options.frames, options.hidden_size, options.seed)))

"""How fast the codec is on this machine, on made-up rows of any width; it needs no model.

Rows and tables are synthetic. They have the shape of real ones (a spectrum of components, most of
them below one step), so speeds are real, and rates only typical. For rate and quality on real
hidden states see `splitpoint certify` and `benchmarks/codec`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from codec.entropy.integers import ALPHABET, ESCAPE, NUM_FAMILIES, REACH, Families
from codec.entropy.rans import Models
from codec.kernel.library import is_compiled
from codec.ladder import Ladder, Level
from codec.levels.calibrated import CalibratedCodec
from codec.levels.calibrated_kind import CALIBRATED
from codec.levels.recall_model import RecallModel
from codec.levels.recalled import RecalledCodec
from codec.levels.registry import KINDS
from codec.levels.split_model import SplitModel
from codec.session_coder import SessionCoder
from codec.session_rows import LONGEST_CONTEXT

IN_SESSION = "calibrated, in a session"
_PROMPT_ROWS = 64

Progress = Callable[[str, int, int], None]


def synthetic_ladder(hidden_size: int, *, block: int = 256, seed: int = 0) -> Ladder:
    """A level of each kind, named after it; the lossy ones take about 2 bits an element.

    The rotation is in blocks of `block` channels where that divides the width.
    """
    rng = np.random.default_rng(seed)
    size = block if hidden_size > block and hidden_size % block == 0 else hidden_size
    rotations = np.linalg.qr(rng.standard_normal((hidden_size // size, size, size)))[0]
    sigma = 3.0 * np.exp2(-3.5 * np.arange(size) / size)
    listed = min(4096, (32 << 20) // hidden_size)
    model = SplitModel(
        mean=rng.standard_normal(hidden_size).astype(np.float32),
        tau=np.full(hidden_size, 100, dtype=np.float32),
        sigma=np.tile(sigma, hidden_size // size).astype(np.float32),
        forward=rotations.astype(np.float32),
        inverse=np.ascontiguousarray(rotations.swapaxes(1, 2)).astype(np.float32),
        order=rng.permutation(hidden_size).astype(np.int32),
        token_ids=np.arange(listed, dtype=np.int32),
        token_codes=rng.integers(-40, 41, (listed, hidden_size)).astype(np.int8),
        token_scale=np.full(hidden_size, 1 / 32, dtype=np.float32),
        sensitivity=np.full(hidden_size + 1, 0.02, dtype=np.float32),
    )
    scale = np.exp2((np.arange(NUM_FAMILIES) - 16) / 4).clip(0.15, 4)
    counts = np.full((NUM_FAMILIES, ALPHABET), 1e-6)
    steps = np.abs(np.arange(-REACH, REACH + 1))
    counts[:, :ESCAPE] += np.exp(-steps / scale[:, None])
    families = Families(models=Models.from_counts(counts))
    recall = RecallModel(
        shares=np.repeat(np.array([[128], [192], [208], [224]], np.uint8), hidden_size, axis=1),
        left=np.array([[1], [0.8], [0.6], [0.5], [0.4]], np.float32) * model.sigma,
        power=np.repeat(model.sigma[None], LONGEST_CONTEXT, axis=0),
        unit=1 / 16,
    )
    levels = []
    for kind in KINDS:
        codec = kind.synthetic(model, families)
        recalled = None
        if isinstance(codec, CalibratedCodec):
            recalled = RecalledCodec.build(codec, recall)
        levels.append(Level(name=kind.name, codec=codec, recalled=recalled))
    return Ladder(hidden_size=hidden_size, levels=tuple(levels), tables_sha256="synthetic")


def synthetic_rows(ladder: Ladder, num_rows: int, seed: int = 1) -> tuple[Any, Any]:
    """Rows [T, D] that follow the calibrated level's model, and their token ids."""
    rng = np.random.default_rng(seed)
    codecs = [level.codec for level in ladder.levels]
    model = next(codec.model for codec in codecs if isinstance(codec, CalibratedCodec))
    ids = rng.integers(0, len(model.token_ids), num_rows)
    noise = rng.standard_normal((num_rows, ladder.hidden_size)).astype(np.float32) * model.sigma
    rows = model.rotate_back(noise + model.predicted(ids)) + model.mean
    return rows.astype(np.float32), ids


def run_codec_bench(
    *,
    hidden_size: int = 4096,
    prefill_rows: int = 512,
    repeats: int = 30,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Median and spread of encode and decode, one row and `prefill_rows` rows, for each level.

    `bound_s` is the time this machine needs to copy the rows once: the memory-bandwidth bound.
    progress is told (what comes next, runs done, runs in all).
    """
    progress("making tables", 0, 1)
    ladder = synthetic_ladder(hidden_size)
    results: list[dict[str, Any]] = []
    for num_rows in (1, prefill_rows):
        rows, ids = synthetic_rows(ladder, num_rows)
        target = np.empty_like(rows)
        times = repeats if num_rows > 1 else 20 * repeats
        bound = _median(lambda: np.copyto(target, rows), times)[0]  # noqa: B023
        for level in ladder.names:
            progress(f"{level}, {num_rows} rows", len(results), 2 * len(ladder.names))
            frame = ladder.encode(level, rows, ids)
            encode = _median(lambda: ladder.encode(level, rows, ids), times)  # noqa: B023
            decode = _median(
                lambda: ladder.decode(frame, num_rows=num_rows, token_ids=ids),  # noqa: B023
                times,
            )
            results.append(_result(level, rows, frame, encode, decode, bound))
        progress(f"{IN_SESSION}, {num_rows} rows", len(results), 2 * len(ladder.names))
        results.append(_in_session(ladder, rows, ids, times, bound))
    return {
        "hidden_size": hidden_size,
        "compiled_kernel": is_compiled(),
        "measured": True,
        "results": results,
    }


def _in_session(
    ladder: Ladder, rows: Any, ids: Any, repeats: int, bound_s: float
) -> dict[str, Any]:
    """The calibrated level behind a prompt of the same tokens, from which rows are predicted.

    Encoding and decoding include holding the new rows.
    """
    coder, level = SessionCoder(ladder), CALIBRATED.name
    num_prompt = max(_PROMPT_ROWS, len(rows))
    prompt, names = synthetic_rows(ladder, num_prompt, seed=2)
    names[-len(ids) :] = ids
    rows = (prompt[-len(ids) :] + rows) / 2  # half of what a row is, its earlier one was too
    _, arrived = coder.encode(level, prompt, names, first_position=0)
    coder.take(0, names, arrived)
    frame, arrived = coder.encode(level, rows, ids, first_position=num_prompt)

    def encode() -> None:
        _, own = coder.encode(level, rows, ids, first_position=num_prompt)
        coder.take(num_prompt, ids, own)

    def decode() -> None:
        _, found = coder.decode(frame, token_ids=ids, first_position=num_prompt)
        coder.take(num_prompt, ids, found)

    taken = _median(encode, repeats), _median(decode, repeats)
    return _result(IN_SESSION, rows, frame, *taken, bound_s)


def _result(
    level: str,
    rows: Any,
    frame: bytes,
    encode: tuple[float, float],
    decode: tuple[float, float],
    bound_s: float,
) -> dict[str, Any]:
    """One line of the table: medians and 90th percentiles."""
    return {
        "level": level,
        "num_rows": len(rows),
        "bits_per_element": 8 * len(frame) / rows.size,
        "encode_s": encode[0],
        "encode_p90_s": encode[1],
        "decode_s": decode[0],
        "decode_p90_s": decode[1],
        "encode_elements_per_s": rows.size / encode[0],
        "decode_elements_per_s": rows.size / decode[0],
        "bound_s": bound_s,
    }


def _median(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median and 90th percentile of `repeats` calls in seconds, after three to warm up."""
    taken = []
    for index in range(repeats + 3):
        begin = time.perf_counter()
        call()
        if index >= 3:
            taken.append(time.perf_counter() - begin)
    return float(np.median(taken)), float(np.quantile(taken, 0.9))

"""The codec without its compiled kernel: what that costs here, measured, said once a process."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Final

import numpy as np

from codec.kernel.library import is_compiled
from codec.kernel.remedy import remedy
from codec.ladder import Ladder
from codec.levels.calibrated import CalibratedCodec
from codec.rows import Rows

_log: Final = logging.getLogger(__name__)
_LONG_S: Final = 0.1  # a first row that takes longer is measured once


def warn_without_kernel(ladder: Ladder, level: str, *, decodes: bool = False) -> None:
    """One warning a process where numpy does the kernel's work, with what a row takes at `level`.

    decodes: of a server, which decodes rows; an edge encodes them. Where the kernel is there,
    nothing is measured or said.
    """
    if not is_compiled():
        _warn(ladder, level, decodes)


@functools.cache
def _warned() -> list[str]:
    return []


def _warn(ladder: Ladder, level: str, decodes: bool) -> None:
    if _warned():
        return
    encode_s, decode_s = row_seconds(ladder, level)
    told = slow_path_line(decode_s if decodes else encode_s, level, decodes=decodes)
    _warned().append(told)
    _log.warning("%s; to fix: %s", told, remedy())


def slow_path_line(seconds: float, level: str, *, decodes: bool = False) -> str:
    """What the missing kernel costs, in words. seconds: of one row in numpy, measured."""
    work = "decoding" if decodes else "encoding"
    return (
        f"the codec's compiled kernel is not there: {work} in numpy makes each token up to "
        f"{1e3 * seconds:.3g} ms slower at {level}, as measured now"
    )


def row_seconds(ladder: Ladder, level: str) -> tuple[float, float]:
    """Seconds of encoding and of decoding one row of `level`, as the codec runs in this process."""
    rows = _usual_row(ladder)
    ids = np.zeros(1, dtype=np.int64)
    frame = ladder.encode(level, rows, ids)
    encode_s = _seconds(lambda: ladder.encode(level, rows, ids))
    return encode_s, _seconds(lambda: ladder.decode(frame, num_rows=1, token_ids=ids))


def _usual_row(ladder: Ladder) -> Rows:
    """A row [1, D] as loud as the ladder's calibration text, or a standard normal one."""
    noise = np.random.default_rng(0).standard_normal((1, ladder.hidden_size)).astype(np.float32)
    for level in ladder.levels:
        if isinstance(level.codec, CalibratedCodec):
            model = level.codec.model
            loud = noise * model.sigma + model.predicted(np.zeros(1, dtype=np.int64))
            return np.asarray(model.rotate_back(loud) + model.mean, dtype=np.float32)
    return noise


def _seconds(call: Callable[[], object]) -> float:
    """The least of three calls; of one where it takes long."""
    least = float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        call()
        least = min(least, time.perf_counter() - begin)
        if least > _LONG_S:
            break
    return least

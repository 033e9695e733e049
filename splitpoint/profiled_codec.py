"""The codec as the profiler measures it (`hwprofiles.profiler.measured_backends.CodecKernels`): its
real coders over made-up rows of any width, and what a level then costs."""

from __future__ import annotations

import functools

from codec.bench import synthetic_ladder, synthetic_rows
from codec.ladder import Ladder
from hwprofiles.profiler.measured_backends import Call


class ProfiledCodec:
    """See CodecKernels. The kinds are the levels of `codec.bench.synthetic_ladder`."""

    kinds: tuple[str, ...] = ("lossless", "calibrated", "tabq")

    def coder(self, kind: str, *, hidden_size: int, num_rows: int) -> tuple[Call, Call]:
        """See CodecKernels."""
        ladder = _ladder(hidden_size)
        rows, ids = synthetic_rows(ladder, num_rows)
        frame = ladder.encode(kind, rows, ids)
        return (
            lambda: ladder.encode(kind, rows, ids),
            lambda: ladder.decode(frame, num_rows=num_rows, token_ids=ids),
        )


@functools.lru_cache(maxsize=1)
def _ladder(hidden_size: int) -> Ladder:
    return synthetic_ladder(hidden_size)

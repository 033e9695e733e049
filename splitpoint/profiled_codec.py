"""The codec as the profiler measures it: its real coders, over made-up rows of any width."""

from __future__ import annotations

import functools

from codec.bench import synthetic_ladder, synthetic_rows
from codec.kernel.library import is_compiled
from codec.ladder import Ladder
from codec.levels.registry import KINDS
from hwprofiles.profiler.measured_backends import Call


class ProfiledCodec:
    """`hwprofiles.profiler.measured_backends.CodecKernels` over every registered kind."""

    kinds: tuple[str, ...] = tuple(kind.name for kind in KINDS)

    def __init__(self) -> None:
        self.runs_in = "compiled" if is_compiled() else "numpy"

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

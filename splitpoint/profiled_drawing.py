"""What a device does for a token beside its layers, as the profiler measures it: the real loop of a
generation that never leaves the device, over logits that are there already."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from decoding.params import SamplingParams
from edge.generation.local import LocalGeneration
from hwprofiles.profiler.measured_backends import Call
from optimizer.policy.retry import Clock


class StillFront:
    """A FrontSegment of no layers: the same logits for every token."""

    num_tokens = 0

    def __init__(self, vocab_size: int) -> None:
        drawn = np.random.default_rng(0).standard_normal((1, vocab_size))
        self._logits: npt.NDArray[np.float32] = drawn.astype(np.float32)

    def forward(self, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Logits [1, V] after the tokens."""
        return self._logits

    def rollback(self, num_tokens: int) -> None:
        """Nothing is cached."""

    def keep_steps(self, steps: Sequence[Sequence[int]]) -> None:
        """Nothing is cached."""


def drawing_kernel(vocab_size: int) -> Call:
    """See `hwprofiles.profiler.measured_backends.DrawingKernel`: the most likely token."""
    generation = LocalGeneration(
        front=StillFront(vocab_size),
        sampling=SamplingParams(),
        chunk_tokens=1,
        clock=Clock(),
    )
    tokens = generation.tokens([1], lambda step: None)
    return lambda: next(tokens)

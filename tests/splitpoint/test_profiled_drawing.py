"""What the profiler times as drawing is what a device does for a token."""

from __future__ import annotations

import numpy as np

from edge.generation.token_source import NewToken
from splitpoint.profiled_drawing import StillFront, drawing_kernel


def test_each_call_draws_the_most_likely_token_of_the_next_position() -> None:
    call = drawing_kernel(500)
    drawn = [call() for _ in range(3)]
    likely = int(StillFront(500).forward(np.array([1])).argmax())
    ids = [token.token_id for token in drawn if isinstance(token, NewToken)]
    assert ids == [likely] * 3

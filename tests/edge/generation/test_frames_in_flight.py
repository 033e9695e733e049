"""How many frames go ahead of their answers is limited by what the server takes."""

from __future__ import annotations

from typing import Any

import pytest

from edge.generation.drafting import DraftSelector


@pytest.mark.parametrize(
    ("server_frames", "most"),
    [(16, 12), (64, 12), (10, 6), (5, 1), (1, 1)],
    ids=["today's server", "more", "fewer", "just one to spare", "one"],
)
def test_the_server_limits_frames_in_flight_but_never_to_none(
    server_frames: int, most: int
) -> None:
    drafter: Any = None
    drafting = DraftSelector(drafter, clock=lambda: 0.0)
    drafting.limit_in_flight(server_frames)
    assert drafting.max_in_flight == most

"""Chunk sizes: fixed when they must be, and otherwise what the policy makes of answered chunks."""

from __future__ import annotations

from typing import Any, Final

import pytest

from codec.ladder import Ladder
from edge.generation.chunk_sizer import ChunkSizer, stage_times
from edge.generation.level_selector import LevelSelector
from optimizer.policy.prefill_chunks import StageTimes, next_chunk
from tests.edge.fakes import WIDTH
from tests.edge.generation.steps import answered_step, step_trace

CHUNK: Final[dict[str, Any]] = {
    "phase": "prefill",
    "num_rows": 64,
    "hidden_bytes": 4_000,
    "uplink_bytes": 4_100,
}


def sizer(*, adaptive: bool = True) -> ChunkSizer:
    selector = LevelSelector(ladder=Ladder.lossless(WIDTH), levels=("lossless",))
    return ChunkSizer(128, selector=selector, adaptive=adaptive)


def test_a_fixed_size_stays_whatever_was_measured() -> None:
    fixed = sizer(adaptive=False)
    for num_rows in (16, 128):
        fixed.answered(answered_step(**{**CHUNK, "num_rows": num_rows}))
    assert fixed.next_tokens(1000) == 128


def test_answered_chunks_are_what_the_policy_is_asked_with() -> None:
    adaptive = sizer()
    times: list[StageTimes] = []
    for num_rows, front_s in ((32, 0.1), (128, 0.2)):
        step = answered_step(**{**CHUNK, "num_rows": num_rows, "front_s": front_s})
        assert adaptive.answered(step) == ""
        times.append(stage_times(step.trace, 0.0))
    assert adaptive.next_tokens(900) == next_chunk(900, 128, times)
    assert adaptive.next_tokens(900) != sizer().next_tokens(900)


def test_decode_steps_say_nothing_of_chunks() -> None:
    adaptive = sizer()
    adaptive.answered(answered_step(9))
    assert adaptive.next_tokens(900) == next_chunk(900, 128, [])


def test_the_links_part_of_a_chunk_follows_its_bytes_and_the_estimated_rate() -> None:
    step = step_trace(**CHUNK, encode_s=0.003, cloud_queue_s=9.0, cloud_codec_s=0.001)
    times = stage_times(step, 1e-6)
    assert times == pytest.approx((64, 0.005, 0.0041, 0.005))  # the queue keeps no stage busy

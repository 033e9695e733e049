"""What generations tell of the link and of the cloud's layers."""

from __future__ import annotations

from typing import Any

import pytest

from edge.generation.move_measurements import MoveMeasurements
from tests.edge.generation.steps import answered_step

RATE = 250_000.0  # bytes a second
TRIP_S = 0.04


def told(measured: MoveMeasurements, *, split: int = 10, num_chunks: int = 4) -> None:
    """A prompt in chunks of 100 rows and 25,000 bytes, one behind the other, and decode steps."""
    watcher = measured.watcher(split)
    for index in range(num_chunks):
        at_s = 5.0 + TRIP_S + 25_000 * (index + 1) / RATE + 0.2
        sent_s = 5.0 + 0.01 * index  # all are handed over at once
        watcher.answered(
            answered_step(
                at_s=at_s,
                alone=False,
                phase="prefill",
                num_rows=100,
                round_trip_s=at_s - sent_s,
                uplink_bytes=25_000,
                cloud_compute_s=0.2,
            )
        )
    watcher.answered(answered_step(1, at_s=20.0, wire_s=TRIP_S))


def test_nothing_is_known_before_anything_was_sent() -> None:
    measured = MoveMeasurements(num_layers=30)
    assert (measured.seconds_per_byte, measured.layers_s, measured.round_trip_s) == (None, None, 0)


def test_a_prompt_shows_the_links_rate_and_the_clouds_time() -> None:
    measured = MoveMeasurements(num_layers=30)
    told(measured)
    assert measured.seconds_per_byte == pytest.approx(1 / RATE, rel=0.01)
    assert measured.round_trip_s == pytest.approx(TRIP_S)
    assert measured.layers_s == pytest.approx(0.2 / 100 * 30 / 20)


def test_ids_are_computed_by_all_layers_and_keys_and_values_by_none() -> None:
    measured = MoveMeasurements(num_layers=30)
    watcher = measured.watcher(10)
    step: dict[str, Any] = {
        "phase": "prefill",
        "num_rows": 100,
        "hidden_bytes": 0,
        "cloud_compute_s": 0.3,
    }
    watcher.answered(answered_step(level="kv:lossless", **step))
    assert measured.layers_s is None
    watcher.answered(answered_step(level="ids", **step))
    assert measured.layers_s == pytest.approx(0.003)


def test_few_bytes_say_nothing_about_a_link() -> None:
    measured = MoveMeasurements(num_layers=30)
    measured.sent(1000, 3.0)
    assert measured.seconds_per_byte is None
    measured.sent(10_000, 0.01)
    assert measured.seconds_per_byte == pytest.approx(1e-6)
    measured.round_trip(0.02)  # longer than it took: as quick as can be
    assert measured.seconds_per_byte == 0.0

"""Keys and values or ids: what is quicker, by measured times; ids while nothing is measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from optimizer.artifacts.geometry import ModelGeometry
from optimizer.policy.move_transport import MoveCosts, cheaper_way, ids_s, kv_bytes, kv_s

# SmolLM2, split 10 to 5, 512 tokens, 20 Mbit/s, lossless; a slow server.
COSTS = MoveCosts(
    num_tokens=512,
    num_elements=2 * 5 * 3 * 64,
    bits=26.8,
    round_trip_s=0.04,
    seconds_per_byte=8 / 20e6,
    layers_s=0.005,
)


def test_the_bytes_are_the_papers() -> None:
    geometry = ModelGeometry(
        architecture="LlamaForCausalLM",
        num_layers=30,
        hidden_size=576,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        intermediate_size=1536,
        vocab_size=49152,
        context_length=8192,
        tied_embeddings=True,
    )
    expected = geometry.kv_bytes(num_layers=5, num_tokens=512, kv_bits=8)
    assert kv_bytes(replace(COSTS, bits=8.0)) == expected == 983_040


def test_the_times_are_those_of_the_formula() -> None:
    assert kv_s(COSTS, 8 / 20e6) == pytest.approx(0.08 + 3_293_184 * 8 / 20e6 + 0.147, abs=1e-3)
    assert ids_s(COSTS, 8 / 20e6, 0.005) == pytest.approx(0.04 + 0.0006 + 2.56, abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "way"),
    [
        ({}, "kv"),
        ({"layers_s": 0.001}, "ids"),  # a quick server computes them sooner
        ({"layers_s": 0.001, "bits": 3.4}, "kv"),  # unless few bits are sent
        ({"seconds_per_byte": 8 / 2e6}, "ids"),  # a slow link
        ({"seconds_per_byte": 0.0, "layers_s": 0.001}, "kv"),
        ({"seconds_per_byte": None}, "ids"),
        ({"layers_s": None}, "ids"),
        ({"num_tokens": 0}, "ids"),
    ],
)
def test_the_quicker_way_is_taken(changes: dict[str, float | None], way: str) -> None:
    assert cheaper_way(replace(COSTS, **changes)) == way  # type: ignore[arg-type]


def test_a_quicker_server_or_a_slower_link_never_turns_ids_into_kv() -> None:
    ways = [
        [
            cheaper_way(replace(COSTS, seconds_per_byte=rate * 1e-7, layers_s=layers * 1e-3))
            for rate in range(1, 30)
        ]
        for layers in range(1, 10)
    ]
    for row in ways:
        assert row == sorted(row, reverse=True)  # kv first, ids for slow links
    for column in zip(*ways, strict=True):
        assert list(column) == sorted(column)  # ids first, kv for slow servers
    assert {way for row in ways for way in row} == {"kv", "ids"}

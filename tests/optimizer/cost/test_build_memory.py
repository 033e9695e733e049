"""The predicted peak of a build, held against measured builds (docs/results/builds.md)."""

from __future__ import annotations

import pytest

from optimizer.cost.build_memory import build_memory

MIB = 1 << 20


def llama_layer(width: int, mlp: int, kv_share: float) -> int:
    """Parameters of one layer without its norms' few."""
    return int(width * width * (2 + 2 * kv_share) + 3 * width * mlp)


@pytest.mark.parametrize(
    ("layers", "width", "mlp", "kv_share", "vocabulary", "has_head", "measured_mib"),
    [
        (16, 2048, 8192, 8 / 32, 128_256, False, 1759),
        (28, 3072, 8192, 8 / 24, 128_256, False, 2429),
        (32, 4096, 14_336, 8 / 32, 128_256, True, 3361),
    ],
    ids=["1b", "3b", "8b"],
)
def test_the_prediction_is_within_a_tenth_of_what_was_measured(
    layers: int,
    width: int,
    mlp: int,
    kv_share: float,
    vocabulary: int,
    has_head: bool,
    measured_mib: float,
) -> None:
    table = 2 * vocabulary * width  # bfloat16
    found = build_memory(
        [llama_layer(width, mlp, kv_share)] * layers,
        embedding_bytes=table,
        head_bytes=table if has_head else 0,
        hidden_size=width,
        vocab_size=vocabulary,
    )
    assert found.total_bytes / MIB == pytest.approx(measured_mib, rel=0.1)

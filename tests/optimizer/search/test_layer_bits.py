"""Bits layer by layer: the dynamic programme finds what trying every choice finds."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.search.layer_bits import choose_layer_bits

LAYERS = st.lists(
    st.tuples(
        st.floats(-0.01, 0.5),  # loss at 4 bits
        st.floats(-0.01, 0.1),  # loss at 8 bits
        st.integers(1, 40),  # bytes at 4 bits
        st.integers(1, 40),  # what 8 bits need beyond
    ),
    min_size=1,
    max_size=8,
)


@given(layers=LAYERS, share=st.floats(-0.1, 1.1))
def test_the_choice_is_the_best_of_all(
    layers: list[tuple[float, float, int, int]], share: float
) -> None:
    losses = [{4: four, 8: eight} for four, eight, _, _ in layers]
    sizes = [{4: float(four), 8: float(four + more)} for _, _, four, more in layers]
    low, high = sum(s[4] for s in sizes), sum(s[8] for s in sizes)
    budget = low + share * (high - low)
    best = min(
        (
            sum(loss[b] for loss, b in zip(losses, bits, strict=True))
            for bits in itertools.product((4, 8), repeat=len(layers))
            if sum(size[b] for size, b in zip(sizes, bits, strict=True)) <= budget + 1e-6
        ),
        default=None,
    )
    chosen = choose_layer_bits(losses, sizes, budget)
    if best is None:
        assert chosen is None
        return
    assert chosen is not None
    assert sum(size[b] for size, b in zip(sizes, chosen, strict=True)) <= budget + 1e-6
    assert sum(loss[b] for loss, b in zip(losses, chosen, strict=True)) == pytest.approx(best)


def test_equal_layers_give_the_bytes_to_the_most_sensitive() -> None:
    losses = [{4: loss, 8: 0.0} for loss in (0.1, 0.5, 0.2, 0.4)]
    sizes = [{4: 1.0, 8: 2.0}] * 4
    assert choose_layer_bits(losses, sizes, 6.0) == (4, 8, 4, 8)
    assert choose_layer_bits(losses, sizes, 4.0) == (4, 4, 4, 4)
    assert choose_layer_bits(losses, sizes, 8.0) == (8, 8, 8, 8)
    assert choose_layer_bits(losses, sizes, 3.9) is None


def test_eighty_layers_are_chosen_at_once() -> None:
    losses = [{4: 1.0 / (1 + layer), 8: 0.0} for layer in range(80)]
    chosen = choose_layer_bits(losses, [{4: 1.0, 8: 2.0}] * 80, 100.0)
    assert chosen == (8,) * 20 + (4,) * 60

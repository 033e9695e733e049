"""Heads in the device's order of channels: whole, padded, and with the same scores."""

from __future__ import annotations

import pytest
import torch

from optimizer.export.front.head_layout import PADDING, HeadLayout


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("rotated", [2, 8, 10, 16, 20])
@pytest.mark.parametrize("head_dim", [20, 24, 32, 40])
def test_every_channel_has_one_place_and_partners_stay_partners(
    head_dim: int, rotated: int, pairs: bool
) -> None:
    layout = HeadLayout(head_dim=head_dim, rotated=rotated, pairs=pairs)
    order = layout.rotated_order
    assert layout.size % 16 == 0
    assert layout.table_width % 8 == 0
    assert len(order) == layout.size
    assert sorted(place for place in order if place != PADDING) == list(range(head_dim))
    half = rotated // 2
    for index in range(half):
        partners = (2 * index, 2 * index + 1) if pairs else (index, index + half)
        assert (order[index], order[index + layout.table_width]) == partners
    others = order[half : layout.table_width] + order[layout.table_width + half :]
    assert all(place == PADDING or place >= rotated for place in others)


def test_a_plain_head_stays_as_it_is() -> None:
    layout = HeadLayout(head_dim=64, rotated=64)
    rows = torch.randn(128, 7)
    assert layout.spread(rows, rotated=True) is rows
    assert layout.spread(rows, rotated=False) is rows


def test_padding_is_zeros_and_changes_no_score() -> None:
    layout = HeadLayout(head_dim=20, rotated=10, pairs=True)
    query, key = torch.randn(3 * 20), torch.randn(3 * 20)
    spread = [layout.spread(rows, rotated=True).view(3, -1) for rows in (query, key)]
    assert int((spread[0] == 0).sum()) == 3 * 12
    torch.testing.assert_close((spread[0] * spread[1]).sum(-1), (query * key).view(3, -1).sum(-1))

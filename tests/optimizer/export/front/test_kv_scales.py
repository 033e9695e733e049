"""An 8-bit cache's scales hold for every position, also where a head is rotated in part."""

from __future__ import annotations

import pytest
import torch

from optimizer.export.front.kv_scales import RotaryLayout, pair_lengths


@pytest.mark.parametrize("share", [1.0, 0.75, 0.5])
def test_no_rotation_takes_a_channel_beyond_its_pairs_length(share: float) -> None:
    keys = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(3))
    rotated = int(64 * share)
    lengths = pair_lengths(keys, RotaryLayout(rotated=rotated))
    assert lengths.shape == keys.shape
    half = rotated // 2
    for angle in torch.linspace(0, 6.3, 17):
        first, second = keys[..., :half], keys[..., half:rotated]
        turned = torch.cat(
            [
                first * angle.cos() - second * angle.sin(),
                second * angle.cos() + first * angle.sin(),
                keys[..., rotated:],
            ],
            -1,
        )
        assert bool((turned.abs() <= lengths + 1e-5).all())
    torch.testing.assert_close(lengths[..., rotated:], keys[..., rotated:].abs())

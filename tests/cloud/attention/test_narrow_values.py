"""Values narrower than keys, through transformers' attention signature (latent attention)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cloud.attention.base import AttentionTraits
from cloud.attention.transformers_interface import packed_attention

ROWS, HEADS, WIDTH = 5, 2, 8


def attend(_: int, query: Tensor, keys_values: Tensor, traits: AttentionTraits) -> Tensor:
    """Causal attention of one sequence by torch itself."""
    key, value = keys_values.transpose(0, 1).chunk(2)
    mixed = F.scaled_dot_product_attention(
        query.transpose(0, 1), key, value, is_causal=True, scale=traits.scale
    )
    return mixed.transpose(0, 1)


def attended(value_width: int) -> tuple[Tensor, Tensor]:
    """What the interface gives, and what torch gives without any padding."""
    torch.manual_seed(value_width)
    query, key = (torch.randn(1, HEADS, ROWS, WIDTH) for _ in range(2))
    value = torch.randn(1, HEADS, ROWS, value_width)
    module: Any = SimpleNamespace(layer_idx=0)
    found, _ = packed_attention(module, query, key, value, None, scaling=0.3, attend=attend)
    wanted = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3)
    return found, wanted.transpose(1, 2)


@pytest.mark.parametrize("value_width", [WIDTH, 6, 1])
def test_values_may_be_narrower_than_keys(value_width: int) -> None:
    found, wanted = attended(value_width)
    assert found.shape == (1, ROWS, HEADS, value_width)
    torch.testing.assert_close(found, wanted)


def test_values_wider_than_keys_are_refused_and_not_cut() -> None:
    with pytest.raises(TypeError, match="values of 9 channels for keys of 8"):
        attended(WIDTH + 1)

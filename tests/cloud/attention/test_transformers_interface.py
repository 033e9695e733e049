"""transformers' layers reach our attention with their own layer, shapes and traits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from cloud.attention.base import AttentionTraits
from cloud.attention.transformers_interface import ATTENTION_NAME, packed_attention


class Layer(nn.Module):
    """An attention module as transformers passes it."""

    def __init__(self, layer_idx: int | None) -> None:
        super().__init__()
        self.layer_idx = layer_idx


def test_it_is_registered_under_the_name_that_models_get() -> None:
    assert AttentionInterface()[ATTENTION_NAME] is packed_attention


def test_heads_come_row_by_row_with_keys_before_values() -> None:
    calls: list[tuple[int, Tensor, Tensor, AttentionTraits]] = []

    def attend(layer: int, query: Tensor, keys_values: Tensor, traits: AttentionTraits) -> Tensor:
        calls.append((layer, query, keys_values, traits))
        return query + 1

    query, key, value = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    out, weights = packed_attention(
        Layer(7), query, key, value, None, attend=attend, scaling=0.5, sliding_window=9, softcap=3.0
    )
    ((layer, heads, keys_values, traits),) = calls
    assert (layer, traits) == (7, AttentionTraits(scale=0.5, window=9, cap=3.0))
    assert heads.shape == (5, 4, 8)
    assert torch.equal(heads[3, 1], query[0, 1, 3])
    assert torch.equal(keys_values[3], torch.cat((key[0, :, 3], value[0, :, 3])))
    assert weights is None
    assert torch.equal(out[0], heads + 1)


def test_a_module_without_a_layer_index_is_refused() -> None:
    rows = torch.zeros(1, 1, 1, 8)
    with pytest.raises(TypeError, match="layer index"):
        packed_attention(
            Layer(None), rows, rows, rows, None, attend=lambda *_: rows[0], scaling=1.0
        )

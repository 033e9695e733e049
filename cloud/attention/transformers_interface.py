"""The one place where transformers meets our attention: its attention interface.

A model whose config names `ATTENTION_NAME` calls `packed_attention` in every layer, with rotated
queries and keys. The engine passes its own attention along as the keyword argument `attend`. Not
every family's layers hand such arguments on (Nemotron's do not), so `attending` says it, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from cloud.attention.base import Attend, AttentionTraits

ATTENTION_NAME: Final = "splitpoint_packed"

_CURRENT: ContextVar[Attend] = ContextVar("attend")


@contextmanager
def attending(attend: Attend) -> Iterator[None]:
    """While open, `attend` is the attention of layers that get none as an argument."""
    token = _CURRENT.set(attend)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    attend: Attend | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature. query: [1, H, T, d]; key: [1, KV, T, d]; value:
    [1, KV, T, v], v at most d: latent attention (MLA) has narrower values, padded here with zeros.

    s_aux: [H], sinks. Returns [1, T, H, v]. Raises TypeError for a module without a layer index,
    and for values wider than keys.
    """
    layer = module.layer_idx
    if not isinstance(layer, int):
        raise TypeError("attention module without a layer index")
    width, key_width = value.shape[-1], key.shape[-1]
    if width > key_width:
        raise TypeError(f"values of {width} channels for keys of {key_width}")
    if width < key_width:
        value = F.pad(value, (0, key_width - width))
    keys_values = torch.cat((key[0], value[0])).transpose(0, 1)  # [T, 2 KV, d]
    heads = query[0].transpose(0, 1)  # [T, H, d]
    traits = AttentionTraits(scaling, sliding_window, softcap, s_aux)
    attend = attend or _CURRENT.get()
    mixed = attend(layer, heads, keys_values, traits)
    return (mixed if width == key_width else mixed[..., :width])[None], None


AttentionInterface.register(ATTENTION_NAME, packed_attention)

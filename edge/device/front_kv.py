"""Keys and values that a segment has cached, in the model's own layout: to be sent to the cloud.

The device's heads are padded, and the channels of its keys may be in another order
(`optimizer.export.front.head_layout`). A front says in its file which channel of the model lies
where. One of an older build says nothing, and an 8-bit cache has rounded its values: neither can be
sent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np

from codec.kv.frame import KeysValues
from edge.device.cache_buffer import CacheBuffer

_NUMBERS: Final = re.compile(r"-?\d{1,6}(,-?\d{1,6})*")


def key_places(text: str, *, head_dim: int, size: int) -> tuple[int, ...] | None:
    """Where each of the model's channels lies in a cached key of `size` places, from the file's
    text; None where it does not say so."""
    if not _NUMBERS.fullmatch(text):
        return None
    channels = [int(number) for number in text.split(",")]
    if len(channels) != size or sorted(c for c in channels if c >= 0) != list(range(head_dim)):
        return None
    return tuple(channels.index(channel) for channel in range(head_dim))


class CachedLayers:
    """The cached keys and values of `layers`, in order. It holds the buffers, and copies nothing.

    buffers: keys and values of each layer, of float16 or float32. num_heads: G. places: of a key's
    channels. head_dim: the model's, d.
    """

    def __init__(
        self,
        layers: range,
        buffers: Sequence[tuple[CacheBuffer, CacheBuffer]],
        *,
        num_heads: int,
        places: Sequence[int],
        head_dim: int,
    ) -> None:
        self.layers = layers
        self._buffers = tuple(buffers)
        self._num_heads = num_heads
        self._places = np.asarray(places)
        self._head_dim = head_dim

    @property
    def num_heads(self) -> int:
        """G."""
        return self._num_heads

    @property
    def head_dim(self) -> int:
        """d."""
        return self._head_dim

    def read(self, begin: int, end: int) -> KeysValues:
        """Of the tokens [begin, end): float32 [T, layers, 2, G, d], keys before values."""
        shape = (end - begin, len(self._buffers), 2, self.num_heads, self._head_dim)
        out = np.empty(shape, dtype=np.float32)
        for index, (keys, values) in enumerate(self._buffers):
            key, value = (each.first(end)[0, :, begin:] for each in (keys, values))
            out[:, index, 0] = key[..., self._places].transpose(1, 0, 2)
            out[:, index, 1] = value[..., : self._head_dim].transpose(1, 0, 2)
        return out

"""Where the channels of an attention head lie on the device.

ONNX Runtime's GroupQueryAttention takes heads of a multiple of 16 channels, and rotates a multiple
of 8 pairs (i, i + R / 2) at the beginning of a head. Models have other head sizes, rotate fewer
channels, or pair neighbours. The rows of the projections are therefore reordered and padded with
zeros when a front is written. Channels without a rotation fill pairs that are left over: their
cosine is 1 and their sine 0.

Scores are sums over channels, so neither order nor zeros change them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from optimizer.artifacts.geometry import DEVICE_HEAD_STEP, device_head_dim

PADDING = -1  # in an order of channels: a channel of zeros


@dataclass(frozen=True, kw_only=True)
class HeadLayout:
    """head_dim: channels of a head. rotated: how many of them positions rotate, from the first.

    pairs: a rotation mixes channels (2 i, 2 i + 1), else (i, i + rotated / 2).
    """

    head_dim: int
    rotated: int
    pairs: bool = False

    @property
    def size(self) -> int:
        """Channels of a head on the device."""
        return device_head_dim(self.head_dim)

    @property
    def table_width(self) -> int:
        """Columns of the cosine and sine tables: pairs that the kernel rotates."""
        return (self.rotated + -self.rotated % DEVICE_HEAD_STEP) // 2

    @cached_property
    def rotated_order(self) -> tuple[int, ...]:
        """Of queries and keys: the model's channel at each place, or PADDING."""
        half = self.rotated // 2
        firsts = [2 * i if self.pairs else i for i in range(half)]
        seconds = [2 * i + 1 if self.pairs else half + i for i in range(half)]
        others = list(range(self.rotated, self.head_dim))
        others += [PADDING] * (self.size - self.head_dim)
        fill = self.table_width - half
        firsts += others[:fill]
        seconds += others[fill : 2 * fill]
        return tuple(firsts + seconds + others[2 * fill :])

    @cached_property
    def plain_order(self) -> tuple[int, ...]:
        """Of values: the channels as they are, then the padding."""
        return (*range(self.head_dim), *[PADDING] * (self.size - self.head_dim))

    def spread(self, rows: Tensor, *, rotated: bool) -> Tensor:
        """Rows [N * head_dim, ...] of N heads in the device's order: [N * size, ...]."""
        order = self.rotated_order if rotated else self.plain_order
        if order == tuple(range(self.head_dim)):
            return rows
        places = torch.tensor(order)
        heads = rows.reshape(-1, self.head_dim, *rows.shape[1:])
        spread = heads[:, places.clamp(min=0)]
        spread[:, places == PADDING] = 0
        return spread.reshape(-1, *rows.shape[1:])

"""A batch as the kernels see it: where each row's session has its keys and values.

The arena is cut into pages of `PAGE` positions of one layer. A session's table says for page p of
its positions where layer l lies: block `base[p] + l * stride[p]`, since a session's layers follow
each other at equal steps (`cloud.kv.pool`). One table thus serves every layer.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from torch import Tensor

PAGE: Final = 16  # positions; equals `optimizer.policy.kv_blocks.KV_BLOCK_TOKENS`


class PagedRows(NamedTuple):
    """T rows of a batch, on the device.

    arena: [blocks * PAGE, 2 KV, d], keys before values. base, stride: int32 [slots, pages], the
    table of each session. slots: int32 [T], each row's line of the tables; -1: no session, the row
    fills a bucket. positions: int32 [T], in the session. splits: int32 [T], the layer that the row
    enters at.
    """

    arena: Tensor
    base: Tensor
    stride: Tensor
    slots: Tensor
    positions: Tensor
    splits: Tensor

    def first(self, count: int) -> PagedRows:
        """The first `count` rows."""
        return self._replace(
            slots=self.slots[:count],
            positions=self.positions[:count],
            splits=self.splits[:count],
        )

"""Block tables of sessions on a device: where the pages of each session lie.

A session gets a line of the tables the first time that it takes part in a step, and gives it back
when its lease is closed. The tables grow when there are more sessions or longer ones than ever
before; `version` counts that, since whatever was recorded with the old tables is then void.
Without locks: one thread asks for lines, and closing a lease only appends to a queue.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from cloud.kv.pool import KvLease
from optimizer.policy.kv_blocks import KV_BLOCK_TOKENS, num_blocks

FIRST_SLOTS: Final = 64
FIRST_PAGES: Final = 64


class BlockTables:
    """base, stride: int32 [slots, pages] on `device`: page p of layer l of a session lies in block
    `base[slot, p] + l * stride[slot, p]`."""

    def __init__(self, device: torch.device | str, *, of_one_step: bool = False) -> None:
        """of_one_step: they are dropped after a step, so no lease has to tell them of its end."""
        self.version = 0
        self._of_one_step = of_one_step
        self._device = torch.device(device)
        self._slots: dict[KvLease, int] = {}
        self._freed: deque[KvLease] = deque()  # closed, on whatever thread
        self._unused = list(range(FIRST_SLOTS))[::-1]
        self._size = FIRST_SLOTS
        self.base, self.stride = self._blank(FIRST_SLOTS, FIRST_PAGES)

    @property
    def num_slots(self) -> int:
        """Lines in use."""
        self._collect()
        return len(self._slots)

    def slot(self, lease: KvLease) -> int:
        """The lease's line, written when it is first asked for."""
        slot = self._slots.get(lease)
        return self._assign(lease) if slot is None else slot

    def reserve(self, *, slots: int, tokens: int) -> None:
        """Make room for so many sessions of so many tokens at once, so that nothing grows later."""
        self._grow(slots, num_blocks(tokens))

    def _assign(self, lease: KvLease) -> int:
        self._collect()
        base, stride = table_of(lease)
        if not self._unused or len(base) > self.base.shape[1]:
            self._grow(self._size + (not self._unused), len(base))
        slot = self._unused.pop()
        self._slots[lease] = slot
        count = len(base)
        self.base[slot, :count] = torch.from_numpy(base).to(self._device)
        self.stride[slot, :count] = torch.from_numpy(stride).to(self._device)
        if not self._of_one_step:
            lease.on_close(self._freed.append)
        return slot

    def _collect(self) -> None:
        while self._freed:
            self._unused.append(self._slots.pop(self._freed.popleft()))

    def _grow(self, slots: int, pages: int) -> None:
        old_slots, old_pages = self.base.shape
        if slots <= old_slots and pages <= old_pages:
            return
        slots = max(old_slots, 1 << (slots - 1).bit_length())
        pages = max(old_pages, 1 << (pages - 1).bit_length())
        base, stride = self._blank(slots, pages)
        base[:old_slots, :old_pages] = self.base
        stride[:old_slots, :old_pages] = self.stride
        self.base, self.stride = base, stride
        self._unused[:0] = range(slots - 1, old_slots - 1, -1)
        self._size = slots
        self.version += 1

    def _blank(self, slots: int, pages: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (slots, pages)
        return (
            torch.zeros(shape, dtype=torch.int32, device=self._device),
            torch.zeros(shape, dtype=torch.int32, device=self._device),
        )


def table_of(lease: KvLease) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """A lease's line: int32 [pages] base and stride (see `BlockTables`).

    Raises ValueError where a segment begins within a page: no lease of the pool does.
    """
    pages = num_blocks(lease.max_tokens)
    base = np.zeros(pages, dtype=np.int32)
    stride = np.zeros(pages, dtype=np.int32)
    for extent, begin, end in lease.segments:
        first, stop = begin // KV_BLOCK_TOKENS, num_blocks(end)
        if begin % KV_BLOCK_TOKENS:
            raise ValueError(f"a segment of a KV lease begins within a page (position {begin})")
        run = extent.run
        start = run.start - lease.split * run.num_blocks
        base[first:stop] = np.arange(start, start + stop - first)
        stride[first:stop] = run.num_blocks
    return base, stride

"""Tokens leave a session's cache: the rows of those that stay move together.

Keys are cached rotated to their positions, so a row may move and keeps its position. Only the model
thread may call this, like everything that writes the arena. Rows are copied through a temporary
tensor, one layer at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cloud.kv.pool import KvLease


def keep_places(lease: KvLease, places: Sequence[int]) -> None:
    """Keep the tokens in these rising places below `lease.length`; all others leave.

    Later tokens get positions as if none had left (`KvLease.num_left`). ValueError where rows would
    move that other sessions read.
    """
    same = next((i for i, place in enumerate(places) if i != place), len(places))
    if same < min(lease.num_frozen, lease.length):
        raise ValueError("rows that other sessions read cannot move")
    arena = lease.pool.arena
    rows: list[int] = []
    strides: list[int] = []
    for row, stride, count in lease.spans(0, lease.length):
        rows.extend(range(row, row + count))
        strides.extend([stride] * count)
    at = torch.tensor(rows, device=arena.device)
    step = torch.tensor(strides, device=arena.device)
    source = torch.tensor(list(places[same:]), dtype=torch.int64, device=arena.device)
    target = torch.arange(same, len(places), device=arena.device)
    for layer in range(lease.num_layers if len(source) else 0):
        from_rows = at[source] + layer * step[source]
        arena.index_copy_(0, at[target] + layer * step[target], arena[from_rows])
    lease.num_left += lease.length - len(places)
    lease.length = len(places)

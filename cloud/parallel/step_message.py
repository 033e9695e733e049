"""One step of the model as rank 0 tells it to the followers.

The message says all: rows, and where each lease's blocks are. So a follower keeps nothing between
steps but its arena, and opening and closing sessions needs no message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cloud.engine.batch_entry import BatchEntry, FloatRows
from cloud.kv.blocks import Run
from cloud.kv.pool import Extent, KvLease, KvPool, Segment
from cloud.parallel.link import LinkMessage


def step_fields(batch: Sequence[BatchEntry]) -> tuple[dict[str, Any], list[memoryview]]:
    """A batch as the fields and the bytes (float32 rows, one entry after the other) of a message.

    The leases' lengths are those before the step.
    """
    entries = []
    data = []
    for entry in batch:
        entries.append(
            {
                "lease": _lease_fields(entry.lease),
                "below": None if entry.below is None else _lease_fields(entry.below),
                "num_rows": entry.rows.shape[0],
                "num_logits": entry.num_logits,
                "num_watched": 0 if entry.watch is None else entry.num_watched,
            }
        )
        rows: FloatRows = entry.rows.to("cpu", torch.float32).contiguous().numpy()
        if rows.size:
            data.append(rows.data.cast("B"))
    return {"entries": entries}, data


def step_batch(message: LinkMessage, pool: KvPool, width: int) -> list[BatchEntry]:
    """The batch of a message, over the follower's own pool. width: D of the rows."""
    rows = np.frombuffer(message.data, dtype=np.float32).reshape(-1, width)
    batch, begin = [], 0
    for entry in message.header["entries"]:
        end = begin + entry["num_rows"]
        below = entry["below"]
        batch.append(
            BatchEntry(
                lease=_lease(pool, entry["lease"]),
                rows=torch.from_numpy(rows[begin:end]),
                num_logits=entry["num_logits"],
                below=None if below is None else _lease(pool, below),
                num_watched=entry["num_watched"],
                watch=_unseen if entry["num_watched"] else None,
            )
        )
        begin = end
    return batch


def _lease_fields(lease: KvLease) -> list[Any]:
    segments = [(*extent.run, begin, end) for extent, begin, end in lease.segments]
    return [lease.split, lease.stop, lease.max_tokens, lease.length, segments]


def _lease(pool: KvPool, fields: Sequence[Any]) -> KvLease:
    split, stop, max_tokens, length, segments = fields
    return KvLease(
        pool,
        tuple(Segment(Extent(Run(*one[:3])), *one[3:]) for one in segments),
        split=split,
        stop=stop,
        max_tokens=max_tokens,
        num_shared=length,
    )


def _unseen(first: int, logits: FloatRows) -> None:
    """Rank 0 shows the logits; a follower only computes its part of them."""

"""Whether the rows of a step stayed within float32's range."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cloud.attention.packed_step import StepEntry


def mark_overflow(hidden: Tensor, entries: Sequence[StepEntry]) -> None:
    """Mark the leases of rows whose squares have no finite sum: a norm would make zeros of them."""
    is_finite = torch.linalg.vector_norm(hidden, dim=1, dtype=torch.float32).isfinite().tolist()
    for entry in entries:
        if not all(is_finite[entry.begin : entry.end]):
            entry.lease.overflowed = True

"""One session's part of a packed batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cloud.engine.drawing import Drawing
from cloud.kv.pool import KvLease

FloatRows: TypeAlias = npt.NDArray[np.float32]
# Rows whose logits exist at once for a `watch`: 32 rows of 150,000 tokens are 19 MB.
WATCHED_CHUNK: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEntry:
    """One session's rows: hidden states float32 [T, D] that enter layer `lease.split`.

    Their positions begin at `lease.length`. The last `num_logits` of them need logits. below: the
    rows are the embedding's; they run through the layers below `lease.split` first, whose keys and
    values this lease holds. None: they enter at the split. watch: is told the logits of the first
    `num_watched` rows, in chunks: the index of the chunk's first row, and float32 [C, V]. It must
    not raise. drawing: what the device may draw the logits rows' tokens with (`Drawing`); None: the
    logits themselves are needed.
    """

    lease: KvLease
    rows: Tensor
    num_logits: int
    below: KvLease | None = None
    num_watched: int = 0
    watch: Callable[[int, FloatRows], None] | None = None
    drawing: Drawing | None = None

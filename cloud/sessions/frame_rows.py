"""The rows that a frame brings, and the first position that it asks for."""

from __future__ import annotations

import numpy as np

from cloud.engine.batch_entry import FloatRows
from cloud.errors import BadFrameError
from codec.errors import FrameError
from codec.ladder import Ladder
from protos.messages import Frame


def decoded_rows(ladder: Ladder, frame: Frame) -> FloatRows:
    """The rows of a frame that brings them, float32 [T, D]. Raises BadFrameError."""
    try:
        rows = ladder.decode(
            frame.hidden,
            num_rows=len(frame.token_ids),
            token_ids=np.asarray(frame.token_ids, dtype=np.int64),
        )
    except FrameError as error:
        raise BadFrameError(f"frame {frame.sequence}: {error}") from error
    if not np.isfinite(rows).all():
        raise BadFrameError(f"frame {frame.sequence}: rows with NaN or infinity")
    # A decoder may hand out a read-only view of the frame, which torch does not take.
    return np.require(rows, dtype=np.float32, requirements=["C", "W"])


def first_drawn(frame: Frame) -> int:
    """The position of the first token that the frame asks for."""
    return frame.first_position + len(frame.token_ids) - frame.num_drafts

"""What the model thread runs: one frame's rows, and the session they belong to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from cloud.kv.pool import KvLease
from protos.messages import Frame, Result, Timings

FloatRows: TypeAlias = npt.NDArray[np.float32]


@dataclass(slots=True, kw_only=True)
class FrameWork:
    """A checked frame on its way through batches. rows: float32 [T, D]; `done` of them have run.

    The last `num_logits` rows need logits and run in one batch.
    """

    frame: Frame
    rows: FloatRows
    num_logits: int
    done: int = 0

    @property
    def left(self) -> int:
        """Rows that have not run yet."""
        return len(self.rows) - self.done


class FrameSession(Protocol):
    """A session as the model thread uses it; `cloud.sessions.session.ServerSession` is one."""

    @property
    def lease(self) -> KvLease:
        """Where its keys and values lie."""
        ...

    @property
    def num_frames(self) -> int:
        """Frames that it has begun."""
        ...

    def begin(self, frame: Frame) -> FrameWork | Result:
        """Check the next frame: its rows to run, or its answer where nothing has to run.

        Raises a CloudError, which ends the session.
        """
        ...

    def finish(
        self,
        work: FrameWork,
        logits: FloatRows,
        timings: Timings,
        elapsed_s: Callable[[], float] = ...,
    ) -> Result:
        """The answer to a frame whose rows have run. logits: float32 [num_logits, V].

        elapsed_s: seconds since the call. Raises a CloudError, which ends the session.
        """
        ...

    def close(self) -> None:
        """Free its blocks; doing it again does nothing."""
        ...

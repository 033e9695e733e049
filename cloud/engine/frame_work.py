"""What the model thread runs: one frame's rows, and the session they belong to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from cloud.kv.pool import KvLease
from protos.messages import Frame, Result, Timings

FloatRows: TypeAlias = npt.NDArray[np.float32]
# Rows of the embedding for T token ids: float32 [T, D].
TokenRows: TypeAlias = Callable[[Sequence[int]], FloatRows]


@dataclass(slots=True, kw_only=True)
class FrameWork:
    """A checked frame on its way through batches. rows: float32 [T, D]; `done` of them have run.

    The last `num_logits` rows need logits and run in one batch. below: where the keys and values of
    the layers below the split lie, for rows that have to run through these layers first.
    """

    frame: Frame
    rows: FloatRows
    num_logits: int
    done: int = 0
    below: KvLease | None = None

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
    def token_rows(self) -> int:
        """How many first tokens may come in token frames."""
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

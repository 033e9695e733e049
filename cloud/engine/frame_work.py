"""What the model thread runs: one frame's rows, and the session they belong to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

import torch
from torch import Tensor

from cloud.engine.batch_entry import BatchEntry, FloatRows
from cloud.engine.drawing import Drawing
from cloud.engine.frame_decoding import Decoded, RowDecoder
from cloud.engine.launches import Answered
from cloud.engine.loop_observer import LoopObserver
from cloud.kv.pool import KvLease
from cloud.squeezed.fixed_context import FixedContext
from decoding.penalties import TokenMask
from optimizer.policy.batching import KeyT, Waiting
from protos.messages import Frame, Result, Timings

# Rows of the embedding for T token ids: float32 [T, D].
TokenRows: TypeAlias = Callable[[Sequence[int]], FloatRows]
# Rows of one batch where every row's logits are watched: the head costs as much as some layers.
WATCHED_ROWS: Final = 64


@dataclass(slots=True, kw_only=True)
class FrameWork:
    """A checked frame on its way through batches. rows: float32 [T, D]; `done` of them have run.

    The last `num_logits` rows need logits and run in one batch. below: where the keys and values of
    the layers below the split lie, for rows that have to run through these layers first. masks:
    what a grammar allows at each of these; `finish` waits for them. watch: is told the logits of
    the first `num_watched` rows: the index of the first one, and float32 [C, V]. drawing: what a
    device may draw the tokens with; None: the server needs the logits. tap: is told the states of
    each batch's rows (`BatchEntry.tap`). context: the session's, some of whose rows have a batch of
    their own (`FixedContext.most_rows`).
    """

    frame: Frame
    rows: FloatRows
    num_logits: int
    done: int = 0
    below: KvLease | None = None
    masks: Future[list[TokenMask]] | None = None
    num_watched: int = 0
    watch: Callable[[int, FloatRows], None] | None = None
    drawing: Drawing | None = None
    tap: Callable[[Tensor], None] | None = None
    context: FixedContext | None = None

    @property
    def left(self) -> int:
        """Rows that have not run yet."""
        return len(self.rows) - self.done

    @property
    def next_rows(self) -> int:
        """Rows that one batch may take: few where each row's logits are watched."""
        rows, spare = self.left, self.left - self.num_logits
        if self.context is not None:
            most = self.context.most_rows(self.frame.first_position + self.done, rows)
            rows = most if most <= spare else rows
        if self.done < self.num_watched and spare > 0 and self.left > WATCHED_ROWS:
            return min(rows, spare, WATCHED_ROWS)
        return rows

    def entry(self, lease: KvLease, num_rows: int) -> BatchEntry:
        """Its next `num_rows` rows as a part of a batch."""
        done, watch = self.done, self.watch
        num_watched = max(0, min(self.num_watched - done, num_rows))
        return BatchEntry(
            lease=lease,
            rows=torch.from_numpy(self.rows[done : done + num_rows]),
            num_logits=self.num_logits if num_rows == self.left else 0,
            below=self.below,
            num_watched=num_watched,
            tap=self.tap,
            context=self.context,
            drawing=self.drawing if num_rows == self.left and self.num_logits else None,
            watch=(
                None
                if watch is None or not num_watched
                else lambda first, logits: watch(done + first, logits)
            ),
        )


@dataclass(slots=True, kw_only=True)
class FrameRun:
    """A frame that was begun and not answered, and where its time went so far, in seconds.

    release: called once no batch needs its rows. answer, batch_sessions, batch_rows: of its last
    batch.
    """

    work: FrameWork
    received_s: float
    release: Callable[[], None]
    codec_s: float
    queue_s: float | None = None  # None: no batch had a row of it yet
    compute_s: float = 0.0
    answer: Answered | None = None
    batch_sessions: int = 0
    batch_rows: int = 0

    def note_wait(self, begun_s: float, observer: LoopObserver) -> None:
        """The first batch with rows of this frame begins: its wait is over."""
        if self.queue_s is None:
            self.queue_s = max(0.0, begun_s - self.received_s - self.codec_s)
            observer.frame_waited(self.queue_s)

    def waiting(self, key: KeyT) -> Waiting[KeyT]:
        """Its next rows as the scheduler sees them."""
        rows = self.work.next_rows
        return Waiting(
            key=key,
            num_rows=rows,
            num_logits=self.work.num_logits if rows == self.work.left else 0,
            begun=self.work.done > 0,
        )

    @property
    def timings(self) -> Timings:
        """Of all but the sampling."""
        return Timings(
            codec_s=self.codec_s,
            queue_s=self.queue_s or 0.0,
            compute_s=self.compute_s,
            batch_sessions=self.batch_sessions,
            batch_rows=self.batch_rows,
        )


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
    def max_positions(self) -> int:
        """How far positions may reach while tokens leave its cache; 0: none leaves."""
        ...

    @property
    def recalls(self) -> bool:
        """Whether its frames may refer to its earlier rows."""
        ...

    @property
    def num_frames(self) -> int:
        """Frames that it has begun."""
        ...

    def decoder_of(self, frame: Frame) -> RowDecoder | None:
        """What decodes the frame's rows ahead of `begin`, on any thread. Any thread may ask.

        None: it is not the next frame, has no rows to decode, or is over a limit.
        """
        ...

    def begin(self, frame: Frame, decoded: Decoded | None = None) -> FrameWork | Result:
        """Check the next frame: its rows to run, or its answer where nothing has to run.

        decoded: what `decoder_of` came to, where it was called. Raises a CloudError, which ends the
        session.
        """
        ...

    def finish(
        self,
        work: FrameWork,
        answer: Answered,
        timings: Timings,
        elapsed_s: Callable[[], float] = ...,
    ) -> Result:
        """The answer to a frame whose rows have run. answer: float32 [num_logits, V], or the tokens
        that a device drew with `work.drawing`.

        elapsed_s: seconds since the call. Raises a CloudError, which ends the session.
        """
        ...

    def close(self) -> None:
        """Free its blocks; doing it again does nothing."""
        ...

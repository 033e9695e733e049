"""The model thread: add, schedule, run, postprocess; nothing else ever touches the engine.

Everything that costs time (decoding frames, the layers, sampling) happens here, so the event
loop stays free to move bytes. Commands come in through a queue, answers leave through each
session's `deliver`, which must not block (`loop.call_soon_threadsafe` behind it).
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch

from cloud.engine.back_engine import BackEngine, BatchEntry
from cloud.errors import CloudError, EngineError
from cloud.server.metrics import Metrics
from cloud.sessions.session import Session, Work
from optimizer.policy.batching import BatchShare, Scheduler, Waiting
from protos.messages import Frame, Result, Timings

logger = logging.getLogger(__name__)

Deliver = Callable[[Result | CloudError], None]

_JOIN_TIMEOUT_S: Final = 30.0


@dataclass(slots=True, eq=False)
class Client:
    """A session in the loop's care: its frames in order, and where its answers go."""

    session: Session
    deliver: Deliver
    frames: deque[tuple[Frame, float]] = field(default_factory=deque)
    work: Work | None = None
    received_s: float = 0.0
    codec_s: float = 0.0
    compute_s: float = 0.0
    queue_s: float = 0.0
    closed: bool = False


@dataclass(frozen=True, slots=True)
class _Submit:
    client: Client
    frame: Frame
    received_s: float


@dataclass(frozen=True, slots=True)
class _Close:
    client: Client
    freed: Future[None]


class _Stop:
    pass


class EngineLoop:
    """Owns the engine and its thread. The public methods may be called from any thread."""

    def __init__(
        self,
        engine: BackEngine,
        scheduler: Scheduler | None = None,
        *,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._metrics = metrics or Metrics()
        self._engine = engine
        self._scheduler = scheduler or Scheduler()
        self._clock = clock
        self._inbox: queue.SimpleQueue[_Submit | _Close | _Stop] = queue.SimpleQueue()
        self._line: dict[Client, None] = {}  # clients with work, in the order they got it
        self._answers: list[tuple[Client, Result | CloudError]] = []  # not yet delivered
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish the batch that runs, then end the thread."""
        self._inbox.put(_Stop())
        self._thread.join(timeout=_JOIN_TIMEOUT_S)

    def submit(self, client: Client, frame: Frame) -> None:
        """Queue a frame; its answer, or the error that ends the session, goes to `deliver`."""
        self._inbox.put(_Submit(client, frame, self._clock()))

    def close(self, client: Client) -> Future[None]:
        """Free the session as soon as no batch uses it; the future is done when it is."""
        freed: Future[None] = Future()
        self._inbox.put(_Close(client, freed))
        return freed

    def _run(self) -> None:
        while self._take_commands():
            shares = self._scheduler.next_batch(
                [
                    Waiting(
                        key=client,
                        num_rows=work.left,
                        num_logits=work.num_logits,
                        begun=work.done > 0,
                    )
                    for client in self._line
                    if (work := client.work) is not None
                ]
            )
            if shares:
                self._run_batch(shares)

    def _take_commands(self) -> bool:
        """Deliver what is done, apply what came in; waits when there is nothing to run.

        False: stop.
        """
        self._deliver()
        while not self._line or not self._inbox.empty():
            command = self._inbox.get()
            if isinstance(command, _Stop):
                return False
            client = command.client
            if isinstance(command, _Close):
                self._drop(client)
                # The stream that waits may be cancelled, and its future with it.
                if command.freed.set_running_or_notify_cancel():
                    command.freed.set_result(None)
            elif not client.closed:
                client.frames.append((command.frame, command.received_s))
                self._next_work(client)
                self._deliver()
        return True

    def _deliver(self) -> None:
        """All answers of a batch together: the event loop is woken once, and runs beside us."""
        for client, answer in self._answers:
            client.deliver(answer)
        self._answers.clear()

    def _next_work(self, client: Client) -> None:
        """Start the client's next frame if it has none running; answers repeats at once."""
        while client.work is None and client.frames and not client.closed:
            frame, client.received_s = client.frames.popleft()
            begun_s = self._clock()
            try:
                work = client.session.begin(frame)
            except CloudError as error:
                self._fail(client, error)
                return
            except Exception as error:  # one session's frame must not end the others'
                logger.exception("taking in a frame failed")
                self._fail(client, EngineError(f"taking in a frame failed ({error})"))
                return
            if isinstance(work, Result):
                self._answers.append((client, work))
                continue
            client.work = work
            client.codec_s = self._clock() - begun_s
            client.compute_s = 0.0
            client.queue_s = -1.0
            self._line[client] = None

    def _run_batch(self, shares: tuple[BatchShare[Client], ...]) -> None:
        batch: list[BatchEntry] = []
        begun_s = self._clock()
        for share in shares:
            client, work = share.key, _work(share.key)
            rows = torch.from_numpy(work.rows[work.done : work.done + share.num_rows])
            last = share.num_rows == work.left
            batch.append(
                BatchEntry(
                    lease=client.session.lease,
                    rows=rows,
                    num_logits=work.num_logits if last else 0,
                )
            )
            if client.queue_s < 0:
                client.queue_s = max(0.0, begun_s - client.received_s - client.codec_s)
                self._metrics.queue_s.observe(client.queue_s)
        try:
            logits = [part.cpu().numpy() for part in self._engine.forward(batch)]
        except Exception as error:  # one broken step must not end the server
            logger.exception("a batch of %d sessions failed", len(shares))
            for share in shares:
                self._fail(share.key, EngineError(f"the model's step failed ({error})"))
            return
        ended_s = self._clock()
        num_rows = sum(share.num_rows for share in shares)
        self._metrics.step_s.observe(ended_s - begun_s)
        self._metrics.batch_sessions.observe(len(shares))
        self._metrics.batch_rows.observe(num_rows)
        for share, part in zip(shares, logits, strict=True):
            client, work = share.key, _work(share.key)
            work.done += share.num_rows
            client.compute_s += ended_s - begun_s
            if work.left == 0:
                self._answer(client, work, part, (len(shares), num_rows))

    def _answer(
        self, client: Client, work: Work, logits: np.ndarray, batch_size: tuple[int, int]
    ) -> None:
        del self._line[client]
        client.work = None
        begun_s = self._clock()
        timings = Timings(
            codec_s=client.codec_s,
            queue_s=client.queue_s,
            compute_s=client.compute_s,
            batch_sessions=batch_size[0],
            batch_rows=batch_size[1],
        )
        try:
            result = client.session.finish(work, logits, timings, lambda: self._clock() - begun_s)
        except CloudError as error:
            self._fail(client, error)
            return
        except Exception as error:  # one session's answer must not end the others'
            logger.exception("drawing a token failed")
            self._fail(client, EngineError(f"drawing a token failed ({error})"))
            return
        self._answers.append((client, result))
        self._next_work(client)

    def _fail(self, client: Client, error: CloudError) -> None:
        self._drop(client)
        self._answers.append((client, error))

    def _drop(self, client: Client) -> None:
        client.closed = True
        client.work = None
        client.frames.clear()
        self._line.pop(client, None)
        client.session.close()


def _work(client: Client) -> Work:
    if client.work is None:
        raise RuntimeError("a client without work was scheduled")
    return client.work

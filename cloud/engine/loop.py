"""The model thread: it takes in frames, picks a batch, runs it and answers, over and over.

Everything that costs time (the layers, sampling) happens on this thread, and only this thread
touches the engine. So the event loop stays free to move bytes. Long frames are decoded on other
threads while a step runs (`cloud.engine.frame_decoding`). Commands come in through a queue. An
answer leaves through its session's `Deliver`, which must not block.

An error of one session or one step ends those sessions. Any other error ends the thread: then
`trouble` says so, every session that waits is told, and sessions are freed without the thread.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final

from cloud.engine.frame_decoding import FrameDecoding
from cloud.engine.frame_work import FrameRun
from cloud.engine.launches import ForwardEngine, Launch, LaunchingEngine, launch
from cloud.engine.loop_commands import (
    ActiveSession,
    CloseCommand,
    Command,
    MaskedCommand,
    Release,
    RowsReadyCommand,
    StopCommand,
    SubmitCommand,
    uncounted,
)
from cloud.engine.loop_observer import LoopObserver, NoObserver
from cloud.engine.step_drafting import StepDrafter, StepDrafting
from cloud.errors import CloudError, EngineError, ServerFailedError
from optimizer.policy.batching import BatchShare, Scheduler
from protos.messages import Frame, Result

logger = logging.getLogger(__name__)

_JOIN_TIMEOUT_S: Final = 30.0
# How long a step waits for short frames whose rows are nearly ready, as a share of the last step.
_GATHER_SHARE: Final = 0.5


class EngineLoop:
    """Owns the engine and its thread. The public methods may be called from any thread."""

    def __init__(
        self,
        engine: ForwardEngine | LaunchingEngine,
        scheduler: Scheduler | None = None,
        *,
        observer: LoopObserver | None = None,
        decoding: FrameDecoding | None = None,
        drafter: StepDrafter | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """decoding: decodes frames; it starts and stops with the loop. None: this thread does.
        drafter: guesses beyond a step's answers, after they were delivered; None: nobody does."""
        self._engine = engine
        self._scheduler = scheduler or Scheduler()
        self._observer = observer or NoObserver()
        self._decoding = decoding or FrameDecoding()
        self._drafting = StepDrafting(drafter, self._work_waits, clock)
        self._clock = clock
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._postponed: deque[Command] = deque()  # what came while a batch ran, and has to wait
        # One frame of each session that has one, in the order in which they were begun.
        self._runs: dict[ActiveSession, FrameRun] = {}
        # Frames whose rows have run and that wait for the masks of their grammar.
        self._masking: dict[ActiveSession, FrameRun] = {}
        self._delayed: set[ActiveSession] = set()  # whose next frame is on its way to be decoded
        self._answers: list[tuple[ActiveSession, Result | CloudError]] = []  # not yet delivered
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._busy_since_s: float | None = None  # None: it waits for a command
        self._step_s = 0.0  # how long the last step took, with what is around it
        self._failure: BaseException | None = None  # what ended the thread
        self._settling = threading.Lock()

    def start(self) -> None:
        """Start the thread."""
        self._decoding.start()
        self._thread.start()

    def stop(self) -> None:
        """Finish the batch that runs, then end the thread. Waits for neither for very long."""
        self._inbox.put(StopCommand())
        self._thread.join(timeout=_JOIN_TIMEOUT_S)

    def trouble(self, max_step_s: float) -> str | None:
        """Why this loop answers no more: its thread died, or a step runs for over `max_step_s`.

        None: it works.
        """
        if self._failure is not None:
            return f"the model thread died ({type(self._failure).__name__}: {self._failure})"
        since_s = self._busy_since_s
        if since_s is not None and time.monotonic() - since_s > max_step_s:
            return f"a step of the model has run for more than {max_step_s:g} s"
        return None

    def submit(self, active: ActiveSession, frame: Frame, release: Release = uncounted) -> None:
        """Queue a frame. Its answer, or the error that ends the session, is delivered.

        release: called once the frame was answered or forgotten.
        """
        received_s = self._clock()
        if not active._dropped:
            idle = self._busy_since_s is None and self._inbox.empty()
            self._decoding.offer(active, active.session, frame, idle=idle)
        self._inbox.put(SubmitCommand(active, frame, received_s, release))
        self._settle_if_dead()

    def close(self, active: ActiveSession, *, keeps_blocks: bool = False) -> Future[None]:
        """Free the session once no batch uses it; the future is done then. keeps_blocks: let go."""
        freed: Future[None] = Future()
        self._inbox.put(CloseCommand(active, freed, keeps_blocks))
        self._settle_if_dead()
        return freed

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # whatever it was: a thread that dies must not go unnoticed
            logger.critical("the model thread died", exc_info=True)
            self._failure = error
            self._settle_if_dead()
        finally:
            self._decoding.stop()

    def _settle_if_dead(self) -> None:
        """Do what the thread cannot do any more: free sessions, and tell those that wait."""
        if self._failure is None:
            return
        with self._settling:
            orphans = dict.fromkeys([*self._runs, *self._masking, *self._delayed])
            while self._postponed or not self._inbox.empty():
                command = self._postponed.popleft() if self._postponed else self._inbox.get()
                if isinstance(command, SubmitCommand):
                    command.active._frames.append(command)
                    orphans[command.active] = None
                elif isinstance(command, CloseCommand):
                    with contextlib.suppress(Exception):
                        self._free(command)
            for active in orphans:
                with contextlib.suppress(Exception):
                    self._drop(active)
                    active._deliver(ServerFailedError("the model thread of this server died"))

    def _free(self, command: CloseCommand) -> None:
        try:
            self._drop(command.active, keeps_blocks=command.keeps_blocks)
        finally:  # the stream that waits may be cancelled, and its future with it
            if command.freed.set_running_or_notify_cancel():
                command.freed.set_result(None)

    def _work(self) -> None:
        while self._take_commands():
            shares = self._scheduler.next_batch(
                [run.waiting(active) for active, run in self._runs.items()]
            )
            if shares:
                self._run_batch(shares)

    def _take_commands(self) -> bool:
        """Deliver what is done and apply what came in, or wait for something. False: stop."""
        if self._busy_since_s is not None:
            self._step_s = time.monotonic() - self._busy_since_s
        self._deliver()
        gathered = False
        while not self._runs or self._postponed or not self._inbox.empty() or not gathered:
            if self._runs and self._inbox.empty() and not self._postponed:
                self._decoding.wait_for_short(_GATHER_SHARE * self._step_s)
                gathered = True
                continue
            self._drafting.when_idle()
            self._busy_since_s = None
            command = self._postponed.popleft() if self._postponed else self._inbox.get()
            self._busy_since_s = time.monotonic()
            if isinstance(command, StopCommand):
                self._busy_since_s = None
                return False
            if isinstance(command, CloseCommand):
                self._free(command)
            elif isinstance(command, MaskedCommand):
                if (run := self._masking.pop(command.active, None)) is not None:
                    self._finish(command.active, run)
                    self._deliver()
            else:
                self._take_in(command)
                self._deliver()
        self._busy_since_s = time.monotonic()  # a batch begins
        return True

    def _take_in(self, command: SubmitCommand | RowsReadyCommand) -> None:
        if isinstance(command, SubmitCommand):
            if command.active._dropped:
                self._forget(command)
                return
            command.active._frames.append(command)
        self._begin_next(command.active)

    def _take_in_meanwhile(self) -> None:
        """Take in the frames that came while a device works; the rest waits for the batch's end.

        Frames touch nothing that the batch uses. After a command that has to wait, all wait.
        """
        while not self._inbox.empty():
            command = self._inbox.get()
            if isinstance(command, SubmitCommand | RowsReadyCommand) and not self._postponed:
                self._take_in(command)
            else:
                self._postponed.append(command)

    def _deliver(self) -> None:
        """Deliver all answers of a batch together: so the event loop wakes once for them."""
        for active, answer in self._answers:
            active._deliver(answer)
        self._answers.clear()

    def _begin_next(self, active: ActiveSession) -> None:
        """Begin the session's next frame if none is begun; a repeated frame is answered at once.

        Where its rows are being decoded, it begins once they are there.
        """
        call_back = partial(self._inbox.put, RowsReadyCommand(active))
        self._delayed.discard(active)
        while active not in self._runs and active not in self._masking and active._frames:
            frame, received_s, release = active._frames[0][1:]
            if not self._decoding.is_ready(active, frame, call_back, idle=not self._runs):
                self._delayed.add(active)
                return
            active._frames.popleft()
            decoded = self._decoding.take(active, frame)
            begun_s = self._clock()
            try:
                work = active.session.begin(frame, decoded)
            except CloudError as error:
                release()
                self._fail(active, error)
                return
            except Exception as error:  # one session's frame must not end the others'
                logger.exception("taking in a frame failed")
                release()
                self._fail(active, EngineError(f"taking in a frame failed ({error})"))
                return
            if isinstance(work, Result):
                release()
                self._answers.append((active, work))
                continue
            codec_s = self._clock() - begun_s + (0.0 if decoded is None else decoded.seconds)
            self._runs[active] = FrameRun(
                work=work, received_s=received_s, release=release, codec_s=codec_s
            )
        if active._frames:
            self._decoding.offer(active, active.session, active._frames[0].frame)

    def _run_batch(self, shares: Sequence[BatchShare[ActiveSession]]) -> None:
        begun_s = self._clock()
        for share in shares:
            self._runs[share.key].note_wait(begun_s, self._observer)
        try:
            batch = [
                self._runs[share.key].work.entry(share.key.session.lease, share.num_rows)
                for share in shares
            ]
            started: Launch = launch(self._engine, batch)
            if not started.is_done:
                self._take_in_meanwhile()
            answers = started.result()
        except Exception as error:  # one broken step must not end the server
            logger.exception("a batch of %d sessions failed", len(shares))
            for share in shares:
                self._fail(share.key, EngineError(f"the model's step failed ({error})"))
            return
        duration_s = self._clock() - begun_s
        num_rows = sum(share.num_rows for share in shares)
        finished: list[ActiveSession] = []
        self._observer.step_ran(duration_s, num_sessions=len(shares), num_rows=num_rows)
        for share, answer in zip(shares, answers, strict=True):
            run = self._runs[share.key]
            run.work.done += share.num_rows
            run.compute_s += duration_s
            if run.work.left == 0:
                run.answer, run.batch_sessions, run.batch_rows = answer, len(shares), num_rows
                self._answer(share.key)
                finished.append(share.key)
        self._deliver()
        self._drafting.after_step(finished, step_s=duration_s)

    def _work_waits(self) -> bool:
        return bool(self._runs or self._delayed or self._postponed) or not self._inbox.empty()

    def _answer(self, active: ActiveSession) -> None:
        """All rows of its frame have run: finish it, or wait for the masks of its grammar."""
        run = self._runs.pop(active)
        run.release()
        masks = run.work.masks
        if masks is None or masks.done():
            self._finish(active, run)
            return
        self._masking[active] = run
        masks.add_done_callback(lambda _: self._inbox.put(MaskedCommand(active)))

    def _finish(self, active: ActiveSession, run: FrameRun) -> None:
        begun_s = self._clock()
        try:
            if run.answer is None:
                raise EngineError("a frame without logits")
            result = active.session.finish(
                run.work, run.answer, run.timings, lambda: self._clock() - begun_s
            )
        except CloudError as error:
            self._fail(active, error)
            return
        except Exception as error:  # one session's answer must not end the others'
            logger.exception("drawing a token failed")
            self._fail(active, EngineError(f"drawing a token failed ({error})"))
            return
        self._observer.frame_answered(run.work.frame, result.timings)
        self._answers.append((active, result))
        self._begin_next(active)

    def _fail(self, active: ActiveSession, error: CloudError) -> None:
        self._drop(active)
        self._answers.append((active, error))

    def _drop(self, active: ActiveSession, *, keeps_blocks: bool = False) -> None:
        active._dropped = True
        run = self._runs.pop(active, None)
        self._masking.pop(active, None)  # released already
        self._delayed.discard(active)
        if run is not None:
            run.release()
        for held in active._frames:
            self._forget(held)
        active._frames.clear()
        if not keeps_blocks:
            active.session.close()

    def _forget(self, held: SubmitCommand) -> None:
        self._decoding.forget(held.active, held.frame, held.release)

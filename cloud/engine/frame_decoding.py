"""Decodes the rows of frames on threads of their own, so that the model's steps do not wait for it.

A frame's decode begins when the frame comes, while a step runs. Each session has one such decode at
most: of the frame that is its next. So decoded rows that wait take no more memory than the byte
budget counts for their frames (`cloud.server.byte_budget`).

A decode is a function of the frame alone. Its outcome, rows or an error, is used where the model
thread would else decode: so nothing but the time depends on these threads.

Short frames that wait go together (`JoinableDecoder`), in calls that let go of the GIL. Those that
cannot go through one thread at a time: most of their decode holds the GIL, so more threads would
not decode more of them. Long frames run beside each other, and never on all threads. Ours.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias, runtime_checkable

from cloud.engine.batch_entry import FloatRows
from hwprofiles.machine_limits import usable_cpus
from protos.messages import Frame

# Makes a frame's rows, float32 [T, D], on any thread; raises what its session ends with.
RowDecoder: TypeAlias = Callable[[], FloatRows]

# A decode step's row and its drafts: no more than a millisecond or two.
SHORT_ROWS: Final = 8
# Of these so many go together at most: the rest goes to other threads, and the wait stays short.
MOST_TOGETHER: Final = 16
MAX_DECODE_THREADS: Final = 4
_JOIN_TIMEOUT_S: Final = 30.0


def default_decode_threads() -> int:
    """One core is the model thread's. None where there is only one core."""
    return min(MAX_DECODE_THREADS, usable_cpus() - 1)


class Decoded(NamedTuple):
    """How a decode ended, and how long it took. outcome: float32 [T, D], or what it raised."""

    outcome: FloatRows | BaseException
    seconds: float

    def rows(self) -> FloatRows:
        """The rows; raises what the decode raised."""
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@runtime_checkable
class JoinableDecoder(Protocol):
    """A RowDecoder of a short frame that others can go along with."""

    @property
    def group(self) -> Hashable:
        """Decoders of one group go together; None: this one goes alone."""

    def __call__(self) -> FloatRows: ...

    def together(self, decoders: Sequence[RowDecoder]) -> list[FloatRows | BaseException]:
        """What each of these decoders of its group gives, or raises."""


class MakesDecoders(Protocol):
    """The part of `FrameSession` that says what decodes a frame."""

    def decoder_of(self, frame: Frame) -> RowDecoder | None: ...


class _Decode:
    """A decode on its way. release: what to call at its end, because nobody wants it any more."""

    __slots__ = (
        *("decode", "decoded", "frame", "group", "is_running", "is_short", "on_ready", "release"),
    )

    def __init__(self, frame: Frame, decode: RowDecoder) -> None:
        self.frame = frame
        self.decode = decode
        self.is_short = len(frame.token_ids) <= SHORT_ROWS
        self.group: Hashable = None
        if self.is_short and isinstance(decode, JoinableDecoder):
            self.group = decode.group
        self.is_running = False
        self.decoded: Decoded | None = None
        self.on_ready: Callable[[], None] | None = None
        self.release: Callable[[], None] | None = None


class FrameDecoding:
    """See the module's docstring. Sessions are named by a key. Any thread may call any method."""

    def __init__(
        self,
        num_threads: int = 0,
        *,
        short_frames: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """num_threads: 0: the model thread decodes all frames. short_frames: whether frames of up
        to SHORT_ROWS rows go to the threads too. They hold the GIL for a part of the time, and a
        step that lets go of it then waits for it: right for a GPU, whose steps are one launch, and
        to be measured elsewhere (benchmarks/server)."""
        self._num_threads = num_threads
        self._short_frames = short_frames
        self._clock = clock
        self._lock = threading.Lock()
        self._work_there = threading.Condition(self._lock)
        self._none_awaited = threading.Condition(self._lock)
        self._decodes: dict[Hashable, _Decode] = {}  # the one of each session
        self._queue: list[_Decode] = []  # not begun, as they came
        self._num_running = {True: 0, False: 0}  # calls, by is_short
        self._num_alone = 0  # of the short ones: calls that hold the GIL
        self._num_awaited = 0  # short ones that a batch could take soon
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"frame-decoding-{index}", daemon=True)
            for index in range(num_threads)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads, once the decodes that run are done. What waits is not decoded."""
        with self._lock:
            self._stopped = True
            self._queue.clear()
            self._work_there.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout=_JOIN_TIMEOUT_S)
        with self._lock:
            self._decodes.clear()

    @property
    def num_held(self) -> int:
        """Frames that sessions have here: their rows, or a decode on its way."""
        return len(self._decodes)

    def offer(
        self,
        key: Hashable,
        session: MakesDecoders,
        frame: Frame,
        *,
        idle: bool = False,
    ) -> None:
        """Decode this frame if it is its session's next and the session has no decode here.

        idle: no step runs, so that the model thread is as quick with a short frame.
        """
        is_short = len(frame.token_ids) <= SHORT_ROWS
        if self._stopped or key in self._decodes:
            return
        if idle if is_short else not self._num_threads:
            return
        if (decode := session.decoder_of(frame)) is None:
            return
        job = _Decode(frame, decode)
        if is_short and job.group is None and not (self._num_threads and self._short_frames):
            return
        with self._lock:
            if not self._stopped and key not in self._decodes:
                self._decodes[key] = job
                self._queue.append(job)
                if self._may_run(job):
                    self._work_there.notify()

    def is_ready(
        self, key: Hashable, frame: Frame, on_ready: Callable[[], None], *, idle: bool = False
    ) -> bool:
        """Whether the session can begin this frame: `take` says what is known of its rows.

        idle: the thread that asks has nothing else to do than to decode a short frame. False: its
        decode is on its way, and `on_ready` is called at the end; it must not block.
        """
        with self._lock:
            job = self._of(key, frame)
            if job is None or job.decoded is not None:
                return True
            if not job.is_short or job.is_running or not (idle or not self._num_running[True]):
                if job.on_ready is None and job.is_short:
                    self._num_awaited += 1
                job.on_ready = on_ready
                return False
            jobs = self._with_its_group(job)  # as quick on the thread that asks
            if len(jobs) == 1:
                self._remove(key, job)
                return True
            self._begin(jobs)
        self._run(jobs)
        return True

    def take(self, key: Hashable, frame: Frame) -> Decoded | None:
        """How the frame's decode ended. None: nobody has decoded it."""
        with self._lock:
            job = self._of(key, frame)
            if job is None or job.decoded is None:
                return None
            self._remove(key, job)
            return job.decoded

    def forget(self, key: Hashable, frame: Frame, release: Callable[[], None]) -> None:
        """Nobody wants the frame's rows any more: call `release` as soon as no thread has them."""
        with self._lock:
            job = self._of(key, frame)
            if job is not None:
                self._remove(key, job)
                if job.is_running:
                    job.release = release
                    return
        release()

    def wait_for_short(self, max_wait_s: float) -> None:
        """Wait until no short frame is left for which `is_ready` was False."""
        if self._num_awaited and max_wait_s > 0:
            with self._lock:
                self._none_awaited.wait_for(lambda: not self._num_awaited, timeout=max_wait_s)

    def _of(self, key: Hashable, frame: Frame) -> _Decode | None:
        job = self._decodes.get(key)
        return job if job is not None and job.frame is frame else None

    def _remove(self, key: Hashable, job: _Decode) -> None:
        del self._decodes[key]
        if job in self._queue:
            self._queue.remove(job)
        self._no_longer_awaited(job)

    def _no_longer_awaited(self, job: _Decode) -> None:
        if job.on_ready is not None:
            job.on_ready = None
            self._num_awaited -= job.is_short
            if not self._num_awaited:
                self._none_awaited.notify_all()

    def _work(self) -> None:
        while jobs := self._next():
            self._run(jobs)
            del jobs  # their rows may be large, and the next frame long in coming

    def _next(self) -> list[_Decode]:
        """The oldest decode that may run now and those that go with it, after a wait; []: stop."""
        with self._lock:
            while not self._stopped:
                ready = [job for job in self._queue if self._may_run(job)]
                # A short one that a batch waits for must not stand behind a long one.
                first = next((job for job in ready if job.is_short and job.on_ready), None)
                first = first or next(iter(ready), None)
                if first is not None:
                    jobs = self._with_its_group(first)
                    self._begin(jobs)
                    if any(map(self._may_run, self._queue)):
                        self._work_there.notify()
                    return jobs
                self._work_there.wait()
            return []

    def _with_its_group(self, first: _Decode) -> list[_Decode]:
        """This decode, and those that wait and can go along with it."""
        if first.group is None:
            return [first]
        others = [job for job in self._queue if job.group == first.group and job is not first]
        return [first, *others[: MOST_TOGETHER - 1]]

    def _begin(self, jobs: Sequence[_Decode]) -> None:
        for job in jobs:
            self._queue.remove(job)
            job.is_running = True
        self._count(jobs[0], 1)

    def _may_run(self, job: _Decode) -> bool:
        """Whether a thread of ours may begin it now."""
        if job.is_short and not self._short_frames:
            return False
        if job.is_short and job.group is None:
            return not self._num_alone
        return self._num_running[job.is_short] < max(1, self._num_threads - 1)

    def _count(self, job: _Decode, change: int) -> None:
        """A call with this job first begins (1) or has ended (-1)."""
        self._num_running[job.is_short] += change
        self._num_alone += change if job.is_short and job.group is None else 0

    def _run(self, jobs: Sequence[_Decode]) -> None:
        begun_s = self._clock()
        outcomes = _outcomes([job.decode for job in jobs])
        seconds = (self._clock() - begun_s) / len(jobs)
        releases = []
        with self._lock:
            self._count(jobs[0], -1)
            for job, outcome in zip(jobs, outcomes, strict=True):
                job.is_running = False
                if job.release is not None:
                    releases.append(job.release)
                    continue
                job.decoded = Decoded(outcome, seconds)
                if job.on_ready is not None:
                    job.on_ready()
                self._no_longer_awaited(job)
            if any(map(self._may_run, self._queue)):  # this call may have been in their way
                self._work_there.notify()
        del outcomes
        for release in releases:
            release()


def _outcomes(decoders: Sequence[RowDecoder]) -> Sequence[FloatRows | BaseException]:
    """What each decoder gives, or raises: the model thread raises it again."""
    first = decoders[0]
    try:
        if len(decoders) > 1 and isinstance(first, JoinableDecoder):
            return first.together(decoders)
        return [first()]
    except BaseException as error:
        return [error] * len(decoders)

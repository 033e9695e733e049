"""The followers as rank 0 has them: start them, tell them steps, notice when one is gone."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from cloud.errors import EngineError, StartError
from cloud.parallel.group import RankGroup
from cloud.parallel.link import FollowerLink, LinkMessage

_MODULE: Final = "cloud.parallel.follower"
_END_S: Final = 2.0  # for a follower to end by itself
_BLAME_S: Final = 2.0  # for the news of a follower's death to come after a step that failed


class _OneFollower:
    """A process, its link, and the thread that hears from it."""

    def __init__(
        self, rank: int, devices: Sequence[str], threads: int | None, timeout_s: float, folder: Path
    ) -> None:
        ours, theirs = socket.socketpair()
        self.rank = rank
        self.answers: queue.SimpleQueue[LinkMessage | None] = queue.SimpleQueue()
        self._said = ""  # why it failed, in its own words
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": _python_path()},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for rank 0
            )
        self.link = FollowerLink(ours, send_timeout_s=timeout_s)
        self.link.send(
            "place",
            rank=rank,
            size=len(devices),
            device=devices[rank],
            threads=threads,
            temporary_folder=str(folder),
        )

    def hear(self) -> None:
        """Queue its answers until it is gone; then None."""
        with contextlib.suppress(EOFError):
            while True:
                message = self.link.receive()
                if message.kind == "failed":
                    self._said = message.header["reason"]
                else:
                    self.answers.put(message)
        self.answers.put(None)

    def how_it_ended(self) -> str:
        """One line. It waits a moment for the process to end."""
        try:
            code = self.process.wait(_BLAME_S / 2)
        except subprocess.TimeoutExpired:
            code = 0
        how = f"killed by signal {-code}" if code < 0 else self._said or f"exit status {code}"
        return f"the process of rank {self.rank} has ended ({how})"


class Followers:
    """One process for each rank above 0. `close` ends them; so does the end of this process.

    devices: of each rank, its own first. threads: of each process (None: torch's choice).
    timeout_s: how long a step waits for a rank that does not answer. Raises StartError.
    """

    def __init__(
        self, devices: Sequence[str], *, threads: int | None = None, timeout_s: float = 60.0
    ) -> None:
        if sys.platform == "win32":
            raise StartError("--tensor-parallel is not supported on Windows")
        self.devices = tuple(devices)
        self.size = len(devices)
        self.group = RankGroup(0, self.size)
        self.timeout_s = timeout_s
        self._failure: str | None = None
        self._closing = False
        self._gone = threading.Event()  # a follower, or all of them
        self._folder = Path(tempfile.mkdtemp(prefix="splitpoint-ranks-"))
        self._all: list[_OneFollower] = []
        try:
            for rank in range(1, self.size):
                self._all.append(_OneFollower(rank, devices, threads, timeout_s, self._folder))
        except OSError as error:
            self.close()
            raise StartError(f"cannot start the other ranks ({error})") from error
        for one in self._all:
            threading.Thread(target=self._listen, args=(one,), daemon=True).start()

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        """Those of ranks 1, 2, ..."""
        return [one.process for one in self._all]

    def trouble(self) -> str | None:
        """Why no step can run any more; None: it can."""
        return self._failure

    def fail(self, reason: str) -> str:
        """No step can run any more: the ranks are not at the same place. Returns the first reason.

        A follower that is gone is a better reason than what its absence led to.
        """
        if self._failure is None:
            self._gone.wait(_BLAME_S)
        if self._failure is None:
            self._failure = reason
        return self._failure

    def ask(self, kind: str, **fields: Any) -> None:
        """Send a message to every follower. StartError where one is gone."""
        try:
            for one in self._all:
                one.link.send(kind, **fields)
        except OSError as error:
            raise StartError(self.fail(f"a rank does not take messages ({error})")) from error

    def answers(self, kind: str) -> list[dict[str, Any]]:
        """Wait for every follower's answer of this kind. StartError where one is gone."""
        found = []
        for one in self._all:
            answer = one.answers.get()
            if answer is None or answer.kind != kind:
                raise StartError(self.fail(f"rank {one.rank} did not answer {kind}"))
            found.append(answer.header)
        return found

    def join(self) -> None:
        """Make the group, once."""
        if self.group.is_joined:
            return
        store = self._folder / "store"
        self.ask("join", store=str(store), timeout_s=self.timeout_s)
        try:
            self.group.join(store, torch.device(self.devices[0]), self.timeout_s)
        except RuntimeError as error:
            raise StartError(self.fail(f"the ranks did not meet ({_first_line(error)})")) from error
        self.answers("joined")

    def tell(self, fields: dict[str, Any], data: Sequence[memoryview]) -> None:
        """Tell a step to all. Raises EngineError, at once where a follower is known to be gone."""
        if self._failure is not None:
            raise EngineError(self._failure)
        for one in self._all:
            try:
                one.link.send("step", data, **fields)
            except OSError as error:
                reason = f"rank {one.rank} takes no steps ({error or type(error).__name__})"
                raise EngineError(self.fail(reason)) from error

    def close(self) -> None:
        """End the processes: they end when their links do, and are killed where they do not."""
        self._closing = True
        for one in self._all:
            one.link.close()
        deadline_s = time.monotonic() + _END_S
        for one in self._all:
            try:
                one.process.wait(max(0.1, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
        self.group.leave()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _listen(self, one: _OneFollower) -> None:
        one.hear()
        if not self._closing and self._failure is None:
            self._failure = one.how_it_ended()
        self._gone.set()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _python_path() -> str:
    """Where this process finds its modules, for another one to find the same."""
    return os.pathsep.join(path or os.getcwd() for path in sys.path)

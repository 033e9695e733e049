"""Python in a process of its own, without the seconds that loading torch takes.

A server of this process (`multiprocessing`'s fork server) loads what most commands load, and forks
for each program. What comes of it is a real process, with its own memory, sockets, signals and exit
status. Tests of what starting loads, or of variables that libraries read when they are loaded, use
`subprocess`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, Any, Final

ROOT: Final = Path(__file__).parents[1]
SPLITPOINT: Final = "import sys; from splitpoint.cli import main; sys.exit(main(sys.argv[1:]))"
LOADED: Final = ["splitpoint.cli", "cloud.server.process", "optimizer.export.bundle_builder"]
_SERVER: Final = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(LOADED)


class WarmProcess:
    """`python -c CODE ARGUMENTS`, with the part of `subprocess.Popen` that tests use.

    cwd: None: the repository's root. env: None: this process's variables. stdout and stderr: as in
    Popen, PIPE for stdout alone; None: where those of the tests go.
    """

    def __init__(
        self,
        code: str,
        arguments: Sequence[object],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdout: IO[Any] | int | None = None,
        stderr: IO[Any] | int | None = None,
    ) -> None:
        self.stdout: IO[str] | None = None
        ends: list[int] = []
        places: list[int] = []
        for given, usual in ((stdout, 1), (stderr, 2)):
            if given == subprocess.PIPE:
                assert usual == 1
                read, write = os.pipe()
                self.stdout = os.fdopen(read, encoding="utf-8")
                ends.append(write)
                places.append(write)
            elif given == subprocess.DEVNULL:
                ends.append(os.open(os.devnull, os.O_WRONLY))
                places.append(ends[-1])
            elif given == subprocess.STDOUT:
                places.append(places[0])
            else:
                places.append(usual if given is None else _number(given))
        self._process = _SERVER.Process(
            target=_run,
            args=(
                code,
                [str(each) for each in arguments],
                str(ROOT if cwd is None else cwd),
                dict(os.environ if env is None else env),
                DupFd(places[0]),
                DupFd(places[1]),
            ),
            daemon=True,
        )
        self._process.start()
        for end in ends:
            os.close(end)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, -N for signal N; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("python", timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What is left of its output, once it has ended."""
        output = ""
        if self.stdout is not None:
            output = self.stdout.read()
            self.stdout.close()
        self.wait(timeout)
        return output, None


def run(
    code: str,
    arguments: Sequence[object],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """`python -c CODE ARGUMENTS` to its end, as `subprocess.run` with captured output."""
    files = [os.fdopen(os.memfd_create(name), "w+", encoding="utf-8") for name in ("out", "err")]
    with files[0] as out, files[1] as err:
        process = WarmProcess(code, arguments, cwd=cwd, env=env, stdout=out, stderr=err)
        try:
            status = process.wait(timeout)
        except BaseException:
            process.kill()
            process.wait()
            raise
        texts = []
        for file in files:
            file.seek(0)
            texts.append(file.read())
    return subprocess.CompletedProcess([code, *map(str, arguments)], status, *texts)


def _number(given: IO[Any] | int) -> int:
    return given if isinstance(given, int) else given.fileno()


def _run(
    code: str, arguments: list[str], cwd: str, env: dict[str, str], out: Any, err: Any
) -> None:
    """In the process itself: become what `python -c` would be."""
    for number, given in ((1, out), (2, err)):
        os.dup2(given.detach(), number)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = ["-c", *arguments]
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    except KeyboardInterrupt:  # as the interpreter ends
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        sys.stdout.flush()

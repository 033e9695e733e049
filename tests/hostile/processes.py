"""Real `splitpoint` processes for hostile tests: started, measured from outside, ended, their logs.

Nothing of the product is imported into the test's process: what a peer does to a process is seen
only from outside, as its answers, its memory, its log and its exit status.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from tests.warm_python import SPLITPOINT, WarmProcess

ROOT: Final = Path(__file__).parent.parent.parent
READY_PREFIX: Final = "listening on "
STOP_LIMIT_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ListeningProcess:
    """One `splitpoint serve` or `splitpoint api`. address: HOST:PORT. log_path: its stderr."""

    process: WarmProcess
    address: str
    log_path: Path

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def log(self) -> str:
        """What it has written to stderr so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def rss_bytes(self) -> int:
        """Its resident memory now."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def num_threads(self) -> int:
        return int(psutil.Process(self.process.pid).num_threads())

    def num_descriptors(self) -> int:
        return int(psutil.Process(self.process.pid).num_fds())

    def cpu_s(self) -> float:
        """Seconds of CPU that it has used since it began."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def terminate(self) -> int:
        """SIGTERM; waits for the end and returns the exit status."""
        self.process.terminate()
        return self.process.wait(STOP_LIMIT_S)


@contextmanager
def listening_process(
    command: str, arguments: Sequence[str], *, log_path: Path
) -> Iterator[ListeningProcess]:
    """`splitpoint COMMAND ARGUMENTS` once it listens; it is ended with the block."""
    with log_path.open("w", encoding="utf-8") as log:
        process = WarmProcess(
            SPLITPOINT, [*command.split(), *arguments], stdout=subprocess.PIPE, stderr=log
        )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()  # empty when the process ends: no wait without end
            assert line.startswith(READY_PREFIX), log_path.read_text(encoding="utf-8")
            yield ListeningProcess(
                process=process,
                address=line.removeprefix(READY_PREFIX).strip(),
                log_path=log_path,
            )
        finally:
            process.terminate()
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


@contextmanager
def serve_process(
    bundle: Path, *options: str, log_path: Path, debug: bool = False
) -> Iterator[ListeningProcess]:
    """A cloud server of `bundle` on a free loopback port."""
    command = "--debug serve" if debug else "serve"
    arguments = [str(bundle), "--listen", "127.0.0.1:0", "--kv-memory", "64MiB", *options]
    with listening_process(command, arguments, log_path=log_path) as process:
        yield process


@contextmanager
def api_process(
    bundle: Path, server: str | None, *options: str, log_path: Path, debug: bool = False
) -> Iterator[ListeningProcess]:
    """The API of the edge bundle `bundle` on a free loopback port. server: HOST:PORT, or None."""
    command = "--debug api" if debug else "api"
    where = [] if server is None else ["--server", server]
    arguments = [str(bundle), *where, "--listen", "127.0.0.1:0", *options]
    with listening_process(command, arguments, log_path=log_path) as process:
        yield process

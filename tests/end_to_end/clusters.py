"""`splitpoint serve --replicas` in a process of its own, and clients of it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from edge.client import EdgeClient
from edge.generation.completion import CompletionRequest
from edge.generation.report import Completion
from optimizer.policy.retry import RetryPolicy

START_S = 240
PATIENT = RetryPolicy(connect_s=90, step_s=30, recover_s=90)
_SAMPLE = re.compile(r'(\w+)\{(?:.*,)?replica="([^"]+)"[^}]*\} (\S+)')


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ClusterProcess:
    """Started, and listening. extra: further options of `serve`."""

    def __init__(self, bundle: Path, *extra: str, replicas: int = 2) -> None:
        self.port, self.metrics_port = free_port(), free_port()
        options = ["--listen", f"127.0.0.1:{self.port}", "--replicas", str(replicas)]
        options += ["--metrics", f"127.0.0.1:{self.metrics_port}", "--log", "text"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "splitpoint", "serve", str(bundle), *options, *extra],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        timer = threading.Timer(START_S, self._process.kill)
        timer.start()
        line = self._process.stdout.readline() if self._process.stdout else ""
        timer.cancel()
        if not line.startswith("listening on "):
            raise RuntimeError(f"the cluster did not start: {line!r}")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def replica_processes(self) -> list[psutil.Process]:
        """The processes of the replicas, and of those that load."""
        return self._processes("Replica")

    def _processes(self, deployment: str) -> list[psutil.Process]:
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            try:
                title = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if title.startswith("ray::") and "splitpoint" in title and deployment in title:
                found.append(process)
        return found

    def listening(self) -> set[str]:
        """The addresses on which its processes listen."""
        own = psutil.Process(self._process.pid)
        found = set()
        for process in (own, *own.children(recursive=True)):
            try:
                ends = process.net_connections(kind="inet")
            except psutil.Error:
                continue
            found |= {end.laddr.ip for end in ends if end.status == psutil.CONN_LISTEN}
        return found

    def samples(self, name: str) -> dict[str, float]:
        """A metric without further labels, by replica."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        found = (match for line in text.splitlines() if (match := _SAMPLE.fullmatch(line)))
        return {match[2]: float(match[3]) for match in found if match[1] == name}

    def update(self) -> None:
        """Ask for the bundle to be read again."""
        self._process.send_signal(signal.SIGHUP)

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """The exit status, once it has ended."""
        return self._process.wait(120)

    def stop(self) -> None:
        if self._process.poll() is None:
            self.terminate()
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextmanager
def running_cluster(bundle: Path, *extra: str, replicas: int = 2) -> Iterator[ClusterProcess]:
    cluster = ClusterProcess(bundle, *extra, replicas=replicas)
    try:
        yield cluster
    finally:
        cluster.stop()


class Crowd:
    """Clients on threads, each with its own connection and prompt; one after the other begins.

    rounds: answers of each client.
    """

    def __init__(
        self,
        bundle: Path,
        address: str,
        prompts: Sequence[str],
        request: CompletionRequest,
        *,
        rounds: int = 1,
    ) -> None:
        self.answers: dict[tuple[int, int], Completion] = {}
        self.errors: list[Exception] = []
        self.num_pieces = 0
        self._bundle = bundle
        self._address = address
        self._request = request
        self._rounds = rounds
        self._threads = [
            threading.Thread(target=self._run, args=(index, prompt), daemon=True)
            for index, prompt in enumerate(prompts)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self, timeout_s: float = 240) -> None:
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(deadline_s - time.monotonic(), 0.1))
            assert not thread.is_alive(), "a client did not end"

    def wait_for_pieces(self, count: int, timeout_s: float = 120) -> None:
        """Until all clients together have so many tokens."""
        deadline_s = time.monotonic() + timeout_s
        while self.num_pieces < count and time.monotonic() < deadline_s:
            assert not self.errors, self.errors
            time.sleep(0.02)
        assert self.num_pieces >= count

    def _run(self, index: int, prompt: str) -> None:
        try:
            with EdgeClient(self._bundle, self._address, retry_policy=PATIENT) as client:
                for number in range(self._rounds):
                    run = client.start(prompt, self._request)
                    for _ in run:
                        self.num_pieces += 1
                    self.answers[index, number] = run.completion
        except Exception as error:
            self.errors.append(error)

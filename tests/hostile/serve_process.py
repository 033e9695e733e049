"""A real `splitpoint serve`, perhaps with a fault put into it, and what the system says of it."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil

from protos import wire
from protos.messages import Description
from tests.warm_python import SPLITPOINT, WarmProcess

READY = "listening on "
MIB = 1 << 20


class ServeProcess:
    """One server. `address` is HOST:PORT."""

    def __init__(self, process: WarmProcess, address: str, log: Any) -> None:
        self.process = process
        self.address = address
        self.system = psutil.Process(process.pid)
        self._log = log

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def rss_mib(self) -> float:
        return float(self.system.memory_info().rss) / MIB

    def said(self) -> str:
        """What it wrote to stderr."""
        self._log.seek(0)
        return str(self._log.read())

    def describe(self, timeout_s: float = 20.0) -> Description:
        """On a connection of its own."""
        with grpc.insecure_channel(self.address, [("grpc.use_local_subchannel_pool", 1)]) as one:
            untyped: Any = one
            call = untyped.unary_unary(wire.DESCRIBE_PATH)
            return wire.decode_description(
                call(wire.encode_describe_request(), timeout=timeout_s, wait_for_ready=True)
            )

    def num_sessions(self) -> int:
        return self.describe().active_sessions

    def settled_rss_mib(self, below: float, wait_s: float = 15.0) -> float:
        """The resident memory once it is below so many MiB, or after `wait_s`."""
        ends_s = time.monotonic() + wait_s
        while self.rss_mib > below and time.monotonic() < ends_s:
            time.sleep(0.1)
        return self.rss_mib


@contextmanager
def serve_process(bundle: Path, *options: str, fault: str = "") -> Iterator[ServeProcess]:
    """Serve `bundle` on a free port. fault: Python that runs in the process before the command."""
    arguments = ["serve", bundle, "--listen", "127.0.0.1:0", *options]
    with tempfile.TemporaryFile("w+") as log:
        process = WarmProcess(
            f"{fault}\n{SPLITPOINT}", arguments, stdout=subprocess.PIPE, stderr=log
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith(READY):
                process.wait(20)
                log.seek(0)
                raise AssertionError(f"exit {process.returncode}: {log.read()}")
            yield ServeProcess(process, line.removeprefix(READY).strip(), log)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def until(condition: Callable[[], bool], *, within_s: float) -> None:
    """Wait until it is true; AssertionError when it does not come true."""
    ends_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < ends_s, f"did not come true within {within_s:g} s"
        time.sleep(0.05)

"""A `splitpoint serve` in a process of its own, for the demo and for benchmarks."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from edge.errors import ConnectError

READY_PREFIX: Final = "listening on "
STOP_TIMEOUT_S: Final = 10.0


@contextmanager
def serving(bundle: Path, options: Sequence[str] = ()) -> Iterator[str]:
    """Serve `bundle` on a free loopback port; yields its HOST:PORT, stops it at the end."""
    command = [sys.executable, "-m", "splitpoint", "serve", str(bundle)]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            [*command, "--listen", "127.0.0.1:0", *options],
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
        )
        try:
            line = process.stdout.readline() if process.stdout is not None else ""
            if not line.startswith(READY_PREFIX):
                process.wait(STOP_TIMEOUT_S)
                log.seek(0)
                said = (log.read().strip() or "it said nothing").splitlines()[-1]
                raise ConnectError(f"the server did not start: {said}")
            yield line.removeprefix(READY_PREFIX).strip()
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()

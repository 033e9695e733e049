"""`splitpoint serve` and `emulate-link` in processes of their own, for the demo and benchmarks."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from edge.errors import ConnectError
from hwprofiles.links.schedule import BYTES_PER_S_PER_MBPS
from optimizer.cost.link import LinkPoint

READY_PREFIX: Final = "listening on "
STOP_TIMEOUT_S: Final = 10.0


@contextmanager
def serving(bundle: Path, options: Sequence[str] = ()) -> Iterator[str]:
    """Serve `bundle` on a free loopback port; yields its HOST:PORT, stops it at the end."""
    arguments = ["serve", str(bundle), "--listen", "127.0.0.1:0", *options]
    with _running(arguments, what="the server") as address:
        yield address


@contextmanager
def crossing(link: LinkPoint, to: str) -> Iterator[str]:
    """An emulated link of these rates to `to` (HOST:PORT); yields the HOST:PORT to connect to."""
    arguments = ["emulate-link", "--to", to, "--rtt-ms", f"{1e3 * link.rtt_s:g}"]
    arguments += ["--up-mbps", f"{link.up_bytes_per_s / BYTES_PER_S_PER_MBPS:g}"]
    arguments += ["--down-mbps", f"{link.down_bytes_per_s / BYTES_PER_S_PER_MBPS:g}"]
    with _running(arguments, what="the emulated link") as address:
        yield address


@contextmanager
def _running(arguments: Sequence[str], *, what: str) -> Iterator[str]:
    """A command that says on its first line where it listens; stopped at the end."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "splitpoint", *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
        )
        try:
            line = process.stdout.readline() if process.stdout is not None else ""
            address = line.removeprefix(READY_PREFIX).strip()
            if not address:
                process.wait(STOP_TIMEOUT_S)
                log.seek(0)
                said = (log.read().strip() or "it said nothing").splitlines()[-1]
                raise ConnectError(f"{what} did not start: {said}")
            yield address
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()

"""Claims about `splitpoint emulate-link`, run as a process."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

COMMAND = (
    sys.executable,
    "-c",
    "import typer; from splitpoint.commands.emulate_link import emulate_link; "
    "typer.run(emulate_link)",
)


@contextmanager
def hello_server() -> Iterator[str]:
    """Says hello to one caller and hangs up; yields its HOST:PORT."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"hello")

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("as_json", [False, True])
def test_it_prints_its_address_relays_and_ends_cleanly_on_a_signal(
    stop: signal.Signals, as_json: bool
) -> None:
    link = ("--rtt-ms", "4", "--up-mbps", "10", "--down-mbps", "10")
    with (
        hello_server() as target,
        subprocess.Popen(
            [*COMMAND, "--to", target, *link, *(["--json"] if as_json else [])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        first_line = (process.stderr if as_json else process.stdout).readline()
        host, port = first_line.split(":")
        with socket.create_connection((host, int(port)), timeout=20) as client:
            assert client.recv(5) == b"hello"
            assert client.recv(5) == b""
        process.send_signal(stop)
        stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 0
    assert stderr == ""
    if as_json:
        counters = json.loads(stdout)
        assert counters["down"]["delivered_bytes"] == 5
        assert counters["total_connections"] == 1
    else:
        assert stdout == ""


def refusal(*options: str) -> tuple[int, str]:
    """The exit status and the error of a call that should not start."""
    done = subprocess.run(
        [*COMMAND, *options], capture_output=True, text=True, timeout=60, check=False,
        env={"COLUMNS": "400", "TERM": "dumb", "NO_COLOR": "1"},
    )  # fmt: skip
    assert done.stdout == ""
    return done.returncode, " ".join(done.stderr.split())


def test_listening_beyond_loopback_needs_insecure() -> None:
    link = ("--rtt-ms", "4", "--up-mbps", "10", "--down-mbps", "10")
    status, error = refusal("--to", "127.0.0.1:1", "--listen", "0.0.0.0:0", *link)
    assert status == 2
    assert "not loopback" in error


def test_a_link_that_is_not_described_is_bad_usage(tmp_path: Path) -> None:
    status, error = refusal("--to", "127.0.0.1:1", "--rtt-ms", "5")
    assert status == 2
    assert "--up-mbps and --down-mbps, or --trace" in error
    trace = tmp_path / "down.csv"
    trace.write_text("t_s,down_mbps\n0,5\n")
    status, error = refusal("--to", "127.0.0.1:1", "--trace", str(trace), "--rtt-ms", "5")
    assert status == 2
    assert "down has no uplink rate" in error

"""Real processes: a device with an address and a token, links that change bytes, and SIGKILL."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cloud.server.config import ServerConfig
from edge.pull.staging import staging_of
from optimizer.artifacts.bundle import write_manifest
from optimizer.artifacts.manifest import sha256_of
from optimizer.export.bundle_builder import build_bundle
from tests import warm_python
from tests.conftest import ModelBench
from tests.end_to_end.servers import RunningServer
from tests.hostile.processes import ROOT, serve_process
from tests.warm_python import SPLITPOINT

MARK = b"only what the manifest says. "
QUESTION = ("--prompt", "once upon a time", "--max-new-tokens", "6", "--ignore-eos")


@pytest.fixture(scope="module")
def bundle(bench: ModelBench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both sides of a bundle, with enough of the device's to be interrupted in."""
    folder = tmp_path_factory.mktemp("pulled") / "bundle"
    plan = bench.plan(2)
    build_bundle(bench.source, plan, folder, progress=lambda stage: None, sides=("edge", "cloud"))
    (folder / "edge" / "marks.txt").write_bytes(MARK * 8000)
    write_manifest(folder)
    return folder


@contextmanager
def serving(bundle: Path, port: int = 0) -> Iterator[RunningServer]:
    """A server in this process: what is killed is the device."""
    running = RunningServer(ServerConfig(bundle=bundle, port=port, kv_memory_bytes=64 << 20))
    running.start()
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[RunningServer]:
    with serving(bundle) as running:
        yield running


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "splitpoint", *map(str, words)]


def run(*words: object, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    """One command in a process that knows its home folder and nothing else."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    if home is not None:
        environment["HOME"] = str(home)
    return warm_python.run(SPLITPOINT, words, env=environment, timeout=120)


def hashes(folder: Path) -> dict[str, str]:
    """Of the files that a device needs."""
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {str(name): sha256_of(folder / name) for name in names if name.parts[0] != "cloud"}


def noted_bytes(target: Path) -> int:
    """How many bytes of unfinished files are noted as good."""
    found = 0
    for note in staging_of(target).glob("*.good"):
        with suppress(OSError, ValueError):
            found += int(json.loads(note.read_text())["num_bytes"])
    return found


def test_a_pull_that_is_killed_five_times_ends_with_the_same_hashes(
    bundle: Path, server: RunningServer, tmp_path: Path
) -> None:
    target = tmp_path / "device"
    words = command("pull", "--server", server.address, "--out", target, "--rate-limit", "60KiB")
    before = 0
    for _ in range(5):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, cwd=ROOT)
        while noted_bytes(target) <= before:
            assert process.poll() is None, "it was done before it could be killed"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
        assert not target.exists()
        before = noted_bytes(target)
    done = run("pull", "--server", server.address, "--out", target, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert 0 < report["fetched_bytes"] <= report["num_bytes"] - before
    assert hashes(target) == hashes(bundle)
    assert not staging_of(target).exists()


def test_where_nothing_changed_no_byte_of_content_comes(
    bundle: Path, server: RunningServer, tmp_path: Path
) -> None:
    words = ("pull", "--server", server.address, "--out", tmp_path / "device")
    assert "fetched" in run(*words).stdout
    again = run(*words, "--json")
    assert json.loads(again.stdout)["fetched_bytes"] == 0
    assert "nothing changed, 0 B fetched" in run(*words).stdout
    assert hashes(tmp_path / "device") == hashes(bundle)


@contextmanager
def changing_relay(port: int) -> Iterator[int]:
    """The port of a relay to `port` that changes one letter of each mark on its way back."""
    opened = [socket.create_server(("127.0.0.1", 0))]
    threads: list[threading.Thread] = []

    def begin(target: Any, *arguments: Any) -> None:
        threads.append(threading.Thread(target=target, args=arguments, daemon=True))
        threads[-1].start()

    def copy(source: socket.socket, sink: socket.socket, changes: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data.replace(b"manifest says", b"manifest sayz") if changes else data)
            sink.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with suppress(OSError):
            while True:
                near, _ = opened[0].accept()
                far = socket.create_connection(("127.0.0.1", port))
                opened.extend((near, far))
                begin(copy, near, far, False)
                begin(copy, far, near, True)

    begin(serve)
    yield int(opened[0].getsockname()[1])
    for one in opened:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join(30)
    for one in opened:
        one.close()


def test_a_byte_that_changes_on_the_way_is_refused_in_one_line(
    server: RunningServer, tmp_path: Path
) -> None:
    target = tmp_path / "device"
    with changing_relay(server.server.port) as port:
        failed = run("pull", "--server", f"127.0.0.1:{port}", "--out", target)
    assert failed.returncode == 1
    assert failed.stderr == (
        "splitpoint: error: 'edge/marks.txt' is refused: what came is not what the manifest says "
        "(SHA-256)\n"
    )
    assert not target.exists()
    done = run("pull", "--server", server.address, "--out", target)
    assert done.returncode == 0, done.stderr


def test_an_address_is_enough_to_answer_a_question(
    bundle: Path, server: RunningServer, tmp_path: Path
) -> None:
    expected = run("run", bundle, "--server", server.address, *QUESTION)
    asked = run("run", "--server", server.address, *QUESTION, home=tmp_path)
    assert (asked.returncode, asked.stdout) == (0, expected.stdout)
    assert "fetched" in asked.stderr
    again = run("run", "--server", server.address, *QUESTION, home=tmp_path)
    assert (again.returncode, again.stdout) == (0, expected.stdout)
    assert "fetched" not in again.stderr
    listed = run("cache", "list", home=tmp_path).stdout
    assert listed.startswith(server.address)
    assert str(tmp_path / ".cache" / "splitpoint") in listed
    cleared = run("cache", "clear", server.address, home=tmp_path)
    assert "1 bundles deleted" in cleared.stdout
    assert "no bundles" in run("cache", "list", home=tmp_path).stdout


def test_two_processes_at_once_fetch_once(
    bundle: Path, server: RunningServer, tmp_path: Path
) -> None:
    words = command("pull", "--server", server.address, "--out", tmp_path / "device", "--json")
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    reports = [json.loads(process.communicate(timeout=120)[0]) for process in both]
    fetched = sorted(report["fetched_bytes"] for report in reports)
    assert fetched == [0, reports[0]["num_bytes"]]
    assert hashes(tmp_path / "device") == hashes(bundle)


def test_chat_and_api_fetch_the_bundle_too(server: RunningServer, tmp_path: Path) -> None:
    common = ("--server", server.address, "--cache-dir", tmp_path)
    talked = subprocess.run(
        command("chat", *common), input="/exit\n", capture_output=True, text=True, cwd=ROOT
    )
    assert (talked.returncode, "fetched" in talked.stderr) == (0, True), talked.stderr
    with subprocess.Popen(
        command("api", *common, "--listen", "127.0.0.1:0"),
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as api:
        assert api.stdout is not None
        assert api.stdout.readline().startswith("listening on 127.0.0.1:")
        api.terminate()


def test_without_a_home_the_error_is_one_line(server: RunningServer) -> None:
    failed = run("run", "--server", server.address, *QUESTION)
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert "--cache-dir" in failed.stderr
    failed = run("run", *QUESTION)
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)
    assert "--server" in failed.stderr


def test_a_bundle_that_changed_on_the_server_is_noticed(bundle: Path, tmp_path: Path) -> None:
    """Another server with another bundle at the same address."""
    changed = tmp_path / "changed"
    shutil.copytree(bundle, changed)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])

    def asked(folder: Path) -> subprocess.CompletedProcess[str]:
        with serving(folder, port):
            return run("run", "--server", f"127.0.0.1:{port}", *QUESTION, home=tmp_path / "home")

    (tmp_path / "home").mkdir()
    assert asked(bundle).returncode == 0
    (changed / "edge" / "marks.txt").write_bytes(b"another text")
    write_manifest(changed)
    second = asked(changed)
    assert (second.returncode, "fetched 12 B" in second.stderr) == (0, True), second.stderr


def test_credentials_pair_a_server_and_a_device(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    from protos.addresses import Address
    from splitpoint.pairing import new_credentials

    files = new_credentials(tmp_path / "keys", server=Address("127.0.0.1", port))
    token = json.loads(files.device.read_text())["token"]
    listen = ("--listen", f"127.0.0.1:{port}")
    with serve_process(
        bundle, "--credentials", str(files.server), *listen, log_path=tmp_path / "log"
    ) as process:
        said: list[Any] = [
            run("run", "--credentials", files.device, *QUESTION, home=tmp_path),
            run("pull", "--credentials", files.device, "--out", tmp_path / "device"),
            run("pull", "--server", process.address, "--out", tmp_path / "without"),
            run("pull", "--credentials", files.server, "--out", tmp_path / "wrong"),
        ]
        log = process.log()
    assert [one.returncode for one in said] == [0, 0, 1, 1]
    assert "this server speaks TLS" in said[2].stderr
    assert "the server's file" in said[3].stderr
    assert all(token not in one.stdout + one.stderr for one in said)
    assert token not in log

"""A command that dials a wrong address says so on one line, soon, and gRPC's own log says nothing.

These run the command in a process of its own, because gRPC's core writes below Python's stderr.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ModelBench
from tests.edge.net.test_diagnosis import grpc_server
from tests.tls_keys import Keys, make_keys, needs_openssl

pytestmark = needs_openssl


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"), "ours")


def said(bundle: Path, *arguments: str) -> tuple[list[str], float]:
    """The lines on stderr of a run that must fail, and the seconds that it took."""
    command = [sys.executable, "-m", "splitpoint", "run", str(bundle), "--prompt", "x", *arguments]
    begun_s = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    return done.stderr.splitlines(), time.monotonic() - begun_s


def test_tls_on_one_side_only_is_one_line_with_the_cure(bench: ModelBench, keys: Keys) -> None:
    bundle = bench.edge_bundle(2)
    with grpc_server() as plain, grpc_server(keys) as secured:
        lines, took_s = said(bundle, "--server", f"localhost:{plain}", "--tls-ca", str(keys.ca))
        assert lines == [
            f"splitpoint: error: localhost:{plain}: this server does not speak TLS: "
            "leave out --tls-ca"
        ]
        assert took_s < 20.0  # starting and loading; the network's part is below two seconds
        lines, _ = said(bundle, "--server", f"localhost:{secured}")
        assert lines == [
            f"splitpoint: error: localhost:{secured}: this server speaks TLS: give --tls-ca"
        ]


def test_a_name_that_nobody_has_is_one_line(bench: ModelBench) -> None:
    lines, _ = said(bench.edge_bundle(2), "--server", "no-such-host.invalid:50051")
    assert len(lines) == 1
    assert "no host is called 'no-such-host.invalid'" in lines[0]

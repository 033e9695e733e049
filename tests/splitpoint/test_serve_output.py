"""A server that is ready says what it serves, how much fits, and who may connect."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from splitpoint.cli import main
from splitpoint.views.server_view import server_lines
from tests.conftest import ModelBench

FACTS: dict[str, Any] = {
    "model": "own\x1b[2J",
    "device": "cpu",
    "first_layer": 10,
    "num_layers": 30,
    "weights_bytes": 98 << 20,
    "native": True,
    "kv_bytes": 2 << 30,
    "kv_tokens": 69_904,
    "kv_sessions": 34,
    "max_tokens": 2048,
    "max_sessions": 64,
    "tls": True,
    "client_certificates": False,
    "tenants": ("alice", "bob"),
}


def test_the_lines_name_model_layers_device_room_and_access() -> None:
    assert server_lines(FACTS) == [
        "model    own\ufffd[2J: layers 10-29 and the head, 98 MiB on cpu, compiled 8-bit layers",
        "KV       2 GiB: 69,904 tokens, 34 sessions of 2,048 tokens at once",
        "access   TLS; 2 tenants: alice, bob",
    ]


def test_one_tenant_is_one() -> None:
    assert server_lines(FACTS | {"tenants": ("alice",)})[2] == "access   TLS; 1 tenant: alice"


def test_a_draft_head_is_named_with_what_it_takes() -> None:
    lines = server_lines(FACTS | {"draft_head": "eagle", "draft_head_bytes": 40 << 20})
    assert lines[2] == "drafts   eagle head, 40 MiB"
    assert len(lines) == 4


def test_what_limits_the_sessions_is_said_and_many_tenants_are_counted() -> None:
    changed = {
        "max_sessions": 8,
        "tenants": tuple(f"t{i}" for i in range(20)),
        "client_certificates": True,
        "first_layer": 30,
    }
    model, kv, access = server_lines(FACTS | changed)
    assert ": the head, 98 MiB on cpu" in model
    assert kv.endswith("8 sessions of 2,048 tokens at once (--max-sessions)")
    assert access == (
        "access   TLS with client certificates; 20 tenants: "
        "t0, t1, t2, t3, t4, t5, t6, t7 and 12 more"
    )
    assert "no TLS; no tokens" in server_lines(FACTS | {"tls": False, "tenants": ()})[2]


@pytest.mark.parametrize("log", ["off", "json"])
def test_a_real_server_says_it_before_it_listens_but_not_between_json_lines(
    bench: ModelBench, tmp_path: Path, log: str
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("secret-one name=alice\nsecret-two name=bob\n")
    command = ["serve", str(bench.cloud_bundle()), "--listen", "127.0.0.1:0", "--log", log]
    command += ["--token-file", str(tokens), "--kv-memory", "64MiB"]
    process = subprocess.Popen(
        [sys.executable, "-m", "splitpoint", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("listening on 127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert "secret" not in said
    if log == "json":
        assert [line for line in said.splitlines() if not line.startswith("{")] == []
        assert '"kv_tokens": ' in said
    else:
        assert re.search(r"(?m)^model    .*: layers 0-3 and the head, .* on cpu", said)
        assert re.search(r"(?m)^KV       64 MiB: [\d,]+ tokens, \d+ sessions of ", said)
        assert re.search(r"(?m)^access   no TLS; 2 tenants: alice, bob$", said)
    assert process.returncode == 0


def test_a_port_that_is_taken_is_said_before_anything_loads(
    bench: ModelBench, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        status = main(["serve", str(bench.cloud_bundle()), "--listen", address])
    assert status == 1
    said = capsys.readouterr().err
    assert said == f"splitpoint: error: cannot listen on {address} (Address already in use)\n"

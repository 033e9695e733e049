"""`splitpoint serve` as a process: its first line, its answers, its end."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
import typer

from protos import wire
from splitpoint.views.sizes import parse_size
from tests.cloud.tiny_bundle import MODEL_SHA256, make_bundle

PROGRAM = "import typer; from splitpoint.commands.serve import serve; typer.run(serve)"


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_says_where_it_listens_serves_and_ends_cleanly_on_sigterm(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    with start(
        str(tmp_path / "bundle"), "--listen", "127.0.0.1:0", "--kv-memory", "1MiB"
    ) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            match = re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)\n", line)
            assert match, (line, server.stderr and server.stderr.read())
            with grpc.insecure_channel(f"127.0.0.1:{match[1]}") as channel:
                describe = channel.unary_unary(
                    wire.DESCRIBE_PATH, request_serializer=None, response_deserializer=None
                )
                reply = describe(wire.encode_describe_request(), timeout=20)
            description = wire.decode_description(reply)
            assert description.model_sha256 == MODEL_SHA256
            assert description.kv_bytes_limit == 1 << 20
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=30) == 0
        finally:
            server.kill()


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("4096000", 4_096_000),
        ("0", 0),
        ("512MiB", 512 << 20),
        ("2GB", 2 * 10**9),
        ("1.5 gi", 3 << 29),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "-1", "12 parsecs", "1e9", "GiB", "4", "4096"])
def test_other_sizes_are_bad_usage(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_size(text)

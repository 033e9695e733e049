"""Both images build from the real Dockerfiles, start locked down, and answer a request over TLS.

Slow, and it needs a container engine and an index. It runs with

    SPLITPOINT_IMAGES=podman          or docker, or the path of either
    SPLITPOINT_IMAGES_BUILD="..."     more options of `build`, such as --build-arg BASE=IMAGE
    SPLITPOINT_IMAGES_RUN="..."       more options of `run`
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.conftest import ModelBench
from tests.deploy.dockerfile import DEPLOY, ROOT, of, stages

PROGRAM = os.environ.get("SPLITPOINT_IMAGES")
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="builds images, about 10 minutes: SPLITPOINT_IMAGES=podman runs it"
)
IMAGES = {"cloud-cpu": "splitpoint-cloud:test", "edge": "splitpoint-edge:test"}
START_S = 120.0
NUM_TOKENS = 6


def engine(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """One command of the container engine."""
    return subprocess.run(
        [str(PROGRAM), *map(str, arguments)],
        cwd="/",
        capture_output=True,
        text=True,
        check=check,
        timeout=1800,
    )


def more(name: str) -> list[str]:
    return shlex.split(os.environ.get(f"SPLITPOINT_IMAGES_{name}", ""))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def images() -> dict[str, str]:
    for name, tag in IMAGES.items():
        file = DEPLOY / f"docker/{name}.Dockerfile"
        engine("build", "-f", file, "-t", tag, *more("BUILD"), ROOT)
    return IMAGES


@pytest.fixture(scope="module")
def mounts(bench: ModelBench) -> Iterator[Path]:
    """Bundles as `splitpoint build` leaves them, and secrets that another user may read."""
    with tempfile.TemporaryDirectory(prefix="splitpoint-images-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(bench.cloud_bundle(), folder / "server")
        shutil.copytree(bench.edge_bundle(2), folder / "device")
        subprocess.run([DEPLOY / "docker/make_secrets.sh", folder / "secrets"], check=True)
        (folder / "nothing").mkdir()
        (folder / "secrets").chmod(0o755)
        for path in (folder / "secrets").iterdir():
            path.chmod(0o644)
        yield folder


@contextmanager
def container(image: str, bundle: Path, mounts: Path, **variables: str) -> Iterator[str]:
    """A container that may write nowhere, as the image's own user, on the host's network."""
    volumes = {bundle: "/bundle", mounts / "secrets": "/secrets", mounts / "nothing": "/dev/shm"}
    options = ["--network=host", "--read-only", "--cap-drop=ALL", "--user=10001:10001"]
    options += ["--security-opt=no-new-privileges", "--env=HOME=/nonexistent", *more("RUN")]
    options += [f"--volume={source}:{target}:ro" for source, target in volumes.items()]
    options += [f"--env={name}={value}" for name, value in variables.items()]
    made = engine("run", "--detach", *options, image).stdout.split()[-1]
    try:
        yield made
    finally:
        engine("rm", "--force", made, check=False)


def wait_until_healthy(made: str, name: str) -> None:
    """Run the image's own check, in its container, until it succeeds."""
    (check,) = of(stages(name)[-1], "HEALTHCHECK")
    deadline_s = time.monotonic() + START_S
    while engine("exec", made, *check.words, check=False).returncode:
        if time.monotonic() > deadline_s:
            told = engine("logs", made, check=False)
            raise AssertionError(f"{name} is not healthy: {told.stdout}{told.stderr}")
        time.sleep(0.5)


def completion(port: int) -> dict[str, object]:
    """One request of the local API, as JSON."""
    body = {"model": "any", "prompt": "hello", "max_tokens": NUM_TOKENS, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, object] = json.load(answer)
    return found


def test_device_and_server_answer_over_tls_with_a_token_and_not_without(
    images: dict[str, str], mounts: Path
) -> None:
    server_port, metrics_port = free_port(), free_port()
    ports = [free_port(), free_port()]
    with ExitStack() as running:
        server = running.enter_context(
            container(
                images["cloud-cpu"],
                mounts / "server",
                mounts,
                SPLITPOINT_SERVE_LISTEN=f"127.0.0.1:{server_port}",
                SPLITPOINT_SERVE_METRICS=f"127.0.0.1:{metrics_port}",
                SPLITPOINT_SERVE_KV_MEMORY="64MiB",
            )
        )
        wait_until_healthy(server, "cloud-cpu")
        token = {"SPLITPOINT_TOKEN_FILE": "/secrets/token"}
        for port, given in zip(ports, (token, {}), strict=True):
            device = running.enter_context(
                container(
                    images["edge"],
                    mounts / "device",
                    mounts,
                    SPLITPOINT_SERVER=f"localhost:{server_port}",
                    SPLITPOINT_TLS_CA="/secrets/ca.crt",
                    SPLITPOINT_API_LISTEN=f"127.0.0.1:{port}",
                    **given,
                )
            )
            wait_until_healthy(device, "edge")
        usage = completion(ports[0])["usage"]
        assert isinstance(usage, dict)
        assert usage["completion_tokens"] == NUM_TOKENS
        with pytest.raises(urllib.error.HTTPError) as refused:
            completion(ports[1])
        assert "token" in refused.value.read().decode()
        engine("stop", "--time", 40, server)
        code = engine("inspect", "--format", "{{.State.ExitCode}}", server).stdout.strip()
        assert code == "0"
